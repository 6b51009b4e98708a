"""The process inside containers: it loads one function and answers inputs, one after another.

Standard library only, Python 3.8 or later, and nothing imported here: every module this process
loads before user code is a part of every cold start (figures in DESIGN.md).
"""
