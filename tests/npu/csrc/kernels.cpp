// Operators of the simulated NPU: those that make or view storage are here, all others run as the CPU's.
#include "device.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

namespace npu {
namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymIntArrayRef;
template <class T>
using Maybe = std::optional<T>;

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

Tensor empty(IntArrayRef size, Maybe<at::ScalarType> dtype, Maybe<at::Layout>, Maybe<at::Device> device, Maybe<bool>,
             Maybe<at::MemoryFormat> format) {
  c10::DeviceGuard guard(device_or_current(*device));
  return at::detail::empty_generic(size, allocator(), kKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, Maybe<at::ScalarType> dtype, Maybe<at::Layout>,
                     Maybe<at::Device> device, Maybe<bool>) {
  c10::DeviceGuard guard(device_or_current(*device));
  return at::detail::empty_strided_generic(size, stride, allocator(), kKeys, c10::dtype_or_default(dtype));
}

Tensor as_strided(const Tensor& self, IntArrayRef size, IntArrayRef stride, Maybe<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

Tensor& set_storage(Tensor& self, at::Storage storage) {
  auto count = static_cast<int64_t>(storage.nbytes() / self.dtype().itemsize());
  return at::native::set_storage_cpu_(self, storage, 0, {count}, {});
}

// A CPU tensor over the same bytes.
Tensor on_cpu(const Tensor& tensor) {
  if (!tensor.is_privateuseone()) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

// Contiguous, as an NPU's results are; the CPU's may have their channels last in memory.
Tensor on_npu(const Tensor& tensor, c10::Device device) {
  return tensor.defined() ? tensor.contiguous().to(device) : tensor;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar item(const Tensor& self) { return on_cpu(self).item(); }

// Convolutions ask a backend for kernels of its own before they ask its fallback.
Tensor convolution(const Tensor& x, const Tensor& weight, const Maybe<Tensor>& bias, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
                   int64_t groups) {
  auto cpu_bias = bias && bias->defined() ? Maybe<Tensor>(on_cpu(*bias)) : std::nullopt;
  auto y = at::convolution(on_cpu(x), on_cpu(weight), cpu_bias, stride, padding, dilation, transposed, output_padding,
                           groups);
  return on_npu(y, x.device());
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& gradient, const Tensor& x, const Tensor& weight,
                                                        IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                                        bool transposed, IntArrayRef output_padding, int64_t groups,
                                                        std::array<bool, 3> wanted) {
  at::DimVector bias_size{transposed ? weight.size(1) * groups : weight.size(0)};
  auto [dx, dweight, dbias] =
      at::convolution_backward(on_cpu(gradient), on_cpu(x), on_cpu(weight), IntArrayRef(bias_size), stride, padding,
                               dilation, transposed, output_padding, groups, wanted);
  return {on_npu(dx, x.device()), on_npu(dweight, x.device()), on_npu(dbias, x.device())};
}

// Lay a tensor's storage, and with it all tensors that share it, over a part of another one's.
void change_data_ptr(const Tensor& tensor, const Tensor& block, int64_t offset) {
  auto* data = static_cast<char*>(block.data_ptr()) + offset * block.itemsize();
  tensor.storage().unsafeGetStorageImpl()->set_data_ptr_noswap({data, tensor.device()});
}

// The CPU's kernel on the same memory.
void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto first = stack->end() - static_cast<int64_t>(op.schema().arguments().size());
  const auto device = first->toTensor().device();
  for (auto value = first; value != stack->end(); ++value) {
    if (value->isTensor() && value->toTensor().defined()) *value = on_cpu(value->toTensor());
  }
  op.callBoxed(stack);
  const auto result = stack->end() - static_cast<int64_t>(op.schema().returns().size());
  for (auto value = result; value != stack->end(); ++value) {
    *value = on_npu(value->toTensor(), device);
  }
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const auto first = stack->size() - arguments.size();
  for (size_t i = 0; i < arguments.size(); ++i) {
    auto& value = (*stack)[first + i];
    if (value.isGenerator() && value.toGenerator().device().type() == kNpu) {
      value = engine_of(value.toGenerator());
    } else if (value.isNone() && arguments[i].name() == "generator") {
      value = engine_of(default_generator(current_device()));
    }
  }
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

}  // namespace
}  // namespace npu

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &npu::empty);
  library.impl("empty_strided", &npu::empty_strided);
  library.impl("as_strided", &npu::as_strided);
  library.impl("resize_", &at::native::resize_);
  library.impl("view", &at::native::view_symint);
  library.impl("_reshape_alias", &at::native::_reshape_alias_symint);
  library.impl("set_", &at::native::set_cpu_);
  library.impl("set_.source_Tensor", &at::native::set_tensor_);
  library.impl("set_.source_Storage", &npu::set_storage);
  library.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  library.impl("_copy_from", &npu::copy_from);
  library.impl("_copy_from_and_resize", &npu::copy_from_and_resize);
  library.impl("_local_scalar_dense", &npu::item);
  // Nothing is late, so that memory may be given away at once.
  library.impl("record_stream", [](at::Tensor&, c10::Stream) {});
  library.impl("convolution_overrideable", &npu::convolution);
  library.impl("convolution_backward_overrideable", &npu::convolution_backward);
  // Without kernels of its own a backend gets other formulas for these than the CPU, and the fallback would lose the
  // running statistics that batch norm updates.
  for (const char* name : {"native_batch_norm", "native_group_norm", "native_group_norm_backward", "silu_backward"}) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&npu::run_on_cpu>());
  }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&npu::fallback>());
}

TORCH_LIBRARY(simulated_npu, library) {
  library.def("device_count", [] { return int64_t(npu::device_count()); });
  library.def("current_device", [] { return int64_t(npu::current_device()); });
  library.def("set_device", [](int64_t index) { npu::set_device(c10::DeviceIndex(index)); });
  library.def("default_generator", [](int64_t index) { return npu::default_generator(c10::DeviceIndex(index)); });
  library.def("change_data_ptr", &npu::change_data_ptr);
}
