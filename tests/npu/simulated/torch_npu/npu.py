"""`torch.npu`: what PyTorch and programs ask of a device's module."""

import contextlib
import itertools
import threading
import types

import torch

_library = torch.ops.simulated_npu

device_count = _library.device_count
current_device = _library.current_device
calls = []
_numbers = itertools.count(1)
_state = threading.local()
# Switches for float32 with a shortened mantissa, as torch_npu starts: on for convolutions.
conv = types.SimpleNamespace(allow_hf32=True)
matmul = types.SimpleNamespace(allow_hf32=False)


def is_available():
    return True


def is_initialized():
    return True


def _lazy_init():
    pass


def _is_in_bad_fork():
    return False


def set_device(which):
    _library.set_device(_index(which))


@contextlib.contextmanager
def device(which):
    """Another current device for a while."""
    before = current_device()
    set_device(which)
    try:
        yield
    finally:
        set_device(before)


def synchronize(device=None):
    pass


def empty_cache():
    pass


def get_amp_supported_dtype():
    return [torch.bfloat16, torch.float16]


class Stream(torch.Stream):
    """A stream on which nothing is late; what is asked of it goes to `calls`."""

    def __new__(cls, device=None):
        return super().__new__(cls, device=torch.device("npu", _index(device)))

    def __init__(self, device=None):
        # Streams of the simulated device are all equal to PyTorch.
        self.name = f"stream {next(_numbers)}"

    def record_event(self, event=None):
        calls.append((self.name, "record"))
        return super().record_event(event)

    def wait_event(self, event):
        calls.append((self.name, "wait"))
        super().wait_event(event)


@contextlib.contextmanager
def stream(which):
    """Another current stream for a while."""
    before = current_stream()
    _state.stream = which
    try:
        yield
    finally:
        _state.stream = before


def current_stream(device=None):
    if getattr(_state, "stream", None) is None:
        _state.stream = Stream(device)
        _state.stream.name = "default"
    return _state.stream


def manual_seed(seed):
    _generator(None).manual_seed(seed)


def manual_seed_all(seed):
    for index in range(device_count()):
        _generator(index).manual_seed(seed)


def get_rng_state(device=None):
    return _generator(device).get_state()


def set_rng_state(state, device=None):
    _generator(device).set_state(state)


def _index(which):
    if isinstance(which, int):
        return which
    index = None if which is None else torch.device(which).index
    return current_device() if index is None else index


def _generator(which):
    return _library.default_generator(_index(which))
