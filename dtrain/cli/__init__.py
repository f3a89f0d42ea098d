"""The `dtrain` command. One small file a command; a command's module is imported only when it is called."""

from __future__ import annotations
