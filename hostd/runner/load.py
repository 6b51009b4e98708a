"""Find the function: by module and qualified name, or in a pickle made by cloudpickle.

Everything that can go wrong here is told to the daemon as a LoadError with one of the codes of
``hostd/errors.py``; the container then ends.
"""

import sys

GENERATOR, COROUTINE, ASYNC_GENERATOR = 0x20, 0x80, 0x200  # inspect.CO_*, without importing it


class LoadError(Exception):
    """The function cannot be had; ``error`` is the user's own exception, when there was one."""

    def __init__(self, code, text, error=None, hint=""):
        Exception.__init__(self, text)
        self.code = code
        self.text = text
        self.error = error
        self.hint = hint


class Request:
    """What the LOAD frame asks for."""

    def __init__(self, fields):
        module, qualname, flags, python, serialized, source, name = fields
        self.module = str(module, "utf-8")
        self.qualname = str(qualname, "utf-8")
        self.flags = flags[0]
        self.python = str(python, "ascii")
        self.serialized = serialized
        self.source = str(source, "utf-8")
        self.name = str(name, "utf-8")


def load(request):
    """The user's function.

    Raises:
        LoadError: see the module.
    """
    if len(request.serialized):
        found = _unpickled(request)
    else:
        found = _imported(request)
    try:
        found = getattr(found, "_hostd_raw", found)
    except BaseException as error:  # an import that Image.imports() let pass is due now
        raise _import_error(request, error) from error
    if not callable(found):
        raise LoadError(
            "invalid", "%s is a %s, not a function" % (request.name, type(found).__name__)
        )
    return found


def needs_loop(function):
    """Whether calling it gives a coroutine or an async generator, as far as its code tells."""
    for _ in range(100):  # a chain of wrappers; more than this is a cycle
        inner = getattr(function, "__wrapped__", None) or getattr(function, "func", None)
        if inner is None:
            break
        function = inner
    code = getattr(function, "__code__", None)
    if code is None:
        code = getattr(getattr(type(function), "__call__", None), "__code__", None)
    return bool(code is not None and code.co_flags & (COROUTINE | ASYNC_GENERATOR))


def _imported(request):
    try:
        __import__(request.module)
    except BaseException as error:  # whatever the user's module raises is an answer
        raise _import_error(request, error) from error
    found = sys.modules[request.module]
    for part in request.qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            text = "module %s has no %s" % (request.module, request.qualname)
            hint = "is it defined under a condition that does not hold in the container?"
            raise LoadError("function_import_failed", text, None, hint) from None
    return found


def _import_error(request, error):
    if isinstance(error, ModuleNotFoundError) and error.name:
        if request.module == error.name or request.module.startswith(error.name + "."):
            text = "module %s is not in the container (looked in %s)" % (
                request.module,
                ", ".join(sys.path),
            )
            return LoadError("function_import_failed", text, error)
        text = "module %s needs module %s, which the image does not have" % (
            request.module,
            error.name,
        )
        return LoadError("function_import_failed", text, error, _install_hint(error.name))
    kind = type(error).__name__
    text = "importing module %s raised %s" % (request.module, kind)
    return LoadError("function_import_failed", text, error)


def _install_hint(module):
    return "add it to the image, for example with .pip_install(%r)" % module.partition(".")[0]


def _unpickled(request):
    here = "%d.%d" % sys.version_info[:2]
    if request.python and request.python != here:
        # Before unpickling: bytecode of another version can crash the interpreter.
        text = "function %s was pickled by Python %s, the image has Python %d.%d.%d" % (
            (request.name, request.python) + sys.version_info[:3]
        )
        hint = (
            "build the image with Python %s, run the client with Python %s, "
            "or put the function in a module and drop serialized=True" % (request.python, here)
        )
        raise LoadError("version_mismatch", text, None, hint)
    from _pickle import loads

    try:
        return loads(request.serialized)
    except ModuleNotFoundError as error:
        text = "function %s needs module %s, which the image does not have" % (
            request.name,
            error.name,
        )
        hint = _install_hint(error.name or "")
        raise LoadError("not_deserializable", text, error, hint) from error
    except BaseException as error:  # unpickling runs user code
        text = "function %s cannot be unpickled: %s: %s" % (
            request.name,
            type(error).__name__,
            _text(error),
        )
        raise LoadError("not_deserializable", text, error) from error


def _text(error):
    try:
        return str(error)
    except Exception:
        return "<str() of it failed>"
