"""Objectives on a chosen and a rejected completion of the same prompt."""
