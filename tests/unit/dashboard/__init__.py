"""Tests of the dashboard: its pages, streams and actions, without a network."""
