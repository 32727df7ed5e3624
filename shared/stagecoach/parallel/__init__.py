"""Rank grids and the arithmetic of which rectangle of which tensor lies where, without torch."""
