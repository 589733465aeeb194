"""Handlers to try asyncrunner with, on input that every machine has."""
