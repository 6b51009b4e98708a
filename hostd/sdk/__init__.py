"""The Python SDK: App, Function, Image and the client of a host's API.

Users import its names from ``hostd``. Standard library and cloudpickle only, Python 3.9 and later:
the same files run on laptops and, mounted read-only, in containers, where defining an app must cost
next to nothing. So modules that users import at definition time (app, function, image, retries,
context) load nothing heavy; what only a caller needs is imported when it calls. See DESIGN.md.
"""
