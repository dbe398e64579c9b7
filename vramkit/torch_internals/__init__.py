"""The one room that names torch's private parts. README.md beside this file says how a name is added.

A verb asks `needs.require` before any of the user's code runs; other files then take what they use from here.
"""
