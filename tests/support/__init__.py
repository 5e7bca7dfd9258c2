"""What tests are made of: a proxy that cuts the wire, processes that can be killed and frozen.

Here lies only what tests in more than one file use; test files import from here, never from each other.
"""
