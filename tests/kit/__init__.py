"""The kit: cases as data, and one scripted server, for every client of every language.

README.md is what somebody reads who writes a client.
"""
