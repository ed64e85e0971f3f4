// What the parts of the simulated NPU know of each other.
#pragma once

#include <ATen/core/Generator.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>

namespace npu {

// PyTorch keeps this device type for backends outside its tree; Python renames it to "npu".
constexpr auto kNpu = c10::DeviceType::PrivateUse1;

c10::DeviceIndex device_count();
c10::DeviceIndex current_device();
void set_device(c10::DeviceIndex index);

// This device, or the current one where the index is left open.
c10::Device device_or_current(c10::Device device);

// Host memory that says it belongs to the current device.
c10::Allocator* allocator();

// The generator a device draws from unless told another one.
const at::Generator& default_generator(c10::DeviceIndex index);

// The CPU generator that does the work of a device's generator.
at::Generator engine_of(const at::Generator& generator);

}  // namespace npu
