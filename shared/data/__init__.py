"""Datasets: download.py fetches real ones, tales.py writes its own."""
