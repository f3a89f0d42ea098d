"""Rented machines: offers, a ledger written ahead, one road from a price to a destroyed machine."""
