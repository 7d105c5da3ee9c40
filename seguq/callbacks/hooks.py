"""Taking part in a module's own hooks between setup and teardown, and leaving no trace afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Listener = Callable[[dict[str, Any]], None]


def listen(module: Any, name: str, listener: Listener) -> Callable[[], None]:
    """Call ``listener`` with the checkpoint after each call of a module's own hook.

    Lightning calls the module's ``on_save_checkpoint`` for every file, those of ``save_weights_only`` too, of which
    callbacks hear nothing. What is put in its place is a plain function, so that a copy of the module (an averaging
    callback makes one) takes nothing else along.

    Args:
        module: a LightningModule.
        name: ``on_save_checkpoint`` or ``on_load_checkpoint``.
        listener: called with the checkpoint.

    Returns:
        A function that ends it; the last one to end leaves the module as it was found.
    """
    hook: Any = vars(module).get(name)
    if not hasattr(hook, "listeners"):
        found = vars(module).get(name)
        original = getattr(module, name)

        def own_then_listeners(checkpoint: dict[str, Any]) -> Any:
            result = original(checkpoint)
            for each in list(listeners):
                each(checkpoint)
            return result

        listeners: list[Listener] = []
        hook = own_then_listeners
        hook.listeners, hook.found = listeners, found
        setattr(module, name, hook)
    hook.listeners.append(listener)

    def stop() -> None:
        if listener in hook.listeners:
            hook.listeners.remove(listener)
        if not hook.listeners and vars(module).get(name) is hook:
            if hook.found is None:
                delattr(module, name)
            else:
                setattr(module, name, hook.found)

    return stop


def stand_in(module: Any, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Put a function in the place of a method that a module does not have; give a function that takes it away."""
    found = vars(module).get(name)
    if hasattr(found, "is_stand_in"):
        return lambda: None  # another callback's is there, and does the same

    def method(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    method.is_stand_in = True  # type: ignore[attr-defined]
    setattr(module, name, method)

    def stop() -> None:
        if vars(module).get(name) is method:
            delattr(module, name)
            if found is not None:
                setattr(module, name, found)

    return stop
