"""An output folder at a URI, such as s3://bucket/run: commands work in a local folder, whose files are copied there and back.

remote.py: the few operations on any of pyarrow's file systems. changes.py: what to copy, and in which order. transfer.py: the
copying while a command works, and the object that marks the folder as in use.
"""
