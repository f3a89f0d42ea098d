"""The launchers that ship with dtrain, imported as `dtrain_launchers`."""
