"""`torch.npu`: what PyTorch and programs ask of a device's module."""

import contextlib
import types

import torch

_library = torch.ops.simulated_npu

device_count = _library.device_count
current_device = _library.current_device
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


def current_stream(device=None):
    return torch.accelerator.current_stream(torch.device("npu", _index(device)))


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
