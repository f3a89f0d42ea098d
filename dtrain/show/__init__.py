"""Tables, bars and plots: the only code that prints."""
