"""From rows to labelled token ids to packed rows to a schedule: who trains on what, when."""
