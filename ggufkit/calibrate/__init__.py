"""Calibration: how much an error in each column of a weight matrix matters."""
