// One translation unit: reading PyTorch's headers is most of the time that compiling takes.
#include "autocast.cpp"
#include "device.cpp"
#include "kernels.cpp"
