"""What the container works on now; the SDK's ``current_input_id()`` and its sister read it.

A container answers one input at a time, so plain module variables are enough, in threads and tasks
too. Outside an input both are None.
"""

call_id = None
input_id = None
