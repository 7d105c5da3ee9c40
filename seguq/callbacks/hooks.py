"""Taking part in a module's own hooks between setup and teardown, and leaving no trace afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

Listener = Callable[..., object]


class _Replaced:
    """What stands in the place of a module's method. A copy of the module, pickled or not, has its own method again."""

    def __init__(self, module: Any, name: str, function: Callable[..., Any], found: Any = None) -> None:
        self.module, self.name, self.function, self.found = module, name, function, found
        self.listeners: list[Listener] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.function(*args, **kwargs)
        for each in list(self.listeners):
            each(*args, **kwargs)
        return result

    def put_back(self) -> None:
        """Leave the module as it was found."""
        if vars(self.module).get(self.name) is self:
            delattr(self.module, self.name)
            if self.found is not None:
                setattr(self.module, self.name, self.found)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self.found is not None:
            return copy.deepcopy(self.found, memo)
        owner = memo.get(id(self.module))
        return self.found if owner is None else getattr(type(owner), self.name).__get__(owner)

    def __reduce__(self) -> Any:
        return (_own_method, (self.module, self.name)) if self.found is None else (_same, (self.found,))


def _own_method(module: Any, name: str) -> Any:
    return getattr(type(module), name).__get__(module)


def _same(value: Any) -> Any:
    return value


def listen(module: Any, name: str, listener: Listener) -> Callable[[], None]:
    """Call ``listener`` after each call of a module's own hook, with the same arguments.

    Lightning calls the module's hook after those of all callbacks, and its ``on_save_checkpoint`` for every file,
    those of ``save_weights_only`` too, of which callbacks hear nothing. A copy of the module (an averaging callback
    makes one) has its own hook again.

    Args:
        module: a LightningModule.
        name: of the hook, such as ``on_save_checkpoint``.
        listener: a function.

    Returns:
        A function that ends it; the last one to end leaves the module as it was found.
    """
    hook: Any = vars(module).get(name)
    if not isinstance(hook, _Replaced):
        hook = _Replaced(module, name, getattr(module, name), found=hook)
        setattr(module, name, hook)
    hook.listeners.append(listener)

    def stop() -> None:
        if listener in hook.listeners:
            hook.listeners.remove(listener)
        if not hook.listeners:
            hook.put_back()

    return stop


def stand_in(module: Any, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Put a function in the place of a method that a module does not have; give a function that takes it away."""
    found = vars(module).get(name)
    if isinstance(found, _Replaced):
        return lambda: None  # another callback's is there, and does the same
    method = _Replaced(module, name, function, found)
    setattr(module, name, method)
    return method.put_back
