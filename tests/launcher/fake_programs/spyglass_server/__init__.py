"""The real package, its program replaced by the one beside this file."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
