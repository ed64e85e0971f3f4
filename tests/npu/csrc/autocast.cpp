// Mixed precision of the simulated NPU: which operators run in bfloat16 and which in float32, as on CUDA.
#include "device.h"

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

// Their header takes in all of ATen and takes longer to compile than everything here.
namespace at::autocast {
TORCH_API at::ScalarType get_autocast_dtype(at::DeviceType device);
TORCH_API at::Tensor cached_cast(at::ScalarType dtype, const at::Tensor& tensor, at::DeviceType device);
}  // namespace at::autocast

namespace npu {
namespace {

// What the matrix unit computes.
constexpr auto kLowerPrecision = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input",
    "convolution", "_convolution", "addmm", "addmv", "addbmm", "baddbmm", "mm", "mv", "bmm", "matmul", "linear",
    "einsum", "prelu", "scaled_dot_product_attention",
};

// What needs the range or the digits of float32.
constexpr auto kFloat32 = {
    "exp", "expm1", "log", "log10", "log2", "log1p", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar",
    "reciprocal", "rsqrt", "softplus", "layer_norm", "group_norm", "rms_norm", "cosine_similarity", "nll_loss",
    "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "binary_cross_entropy_with_logits", "dist",
    "cdist", "logsumexp", "norm.Scalar", "norm.ScalarOpt_dim", "upsample_nearest2d", "upsample_bilinear2d",
    "upsample_nearest3d", "upsample_trilinear3d", "prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod",
    "cumsum", "linalg_vector_norm", "linalg_matrix_norm", "sum", "sum.dim_IntList",
};

// What takes several tensors and wants them alike: the widest of theirs.
constexpr auto kPromote = {
    "addcdiv", "addcmul", "atan2", "bilinear", "dot", "vdot", "grid_sampler", "index_put", "tensordot", "scatter_add",
};

enum class Policy { lower_precision, float32, promote };

bool has_float32(const c10::IValue& value) {
  return value.isTensor() && value.toTensor().defined() && value.toTensor().scalar_type() == at::kFloat;
}

c10::IValue cast(const c10::IValue& value, at::ScalarType dtype) {
  if (value.isTensor()) return at::autocast::cached_cast(dtype, value.toTensor(), kNpu);
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> tensors;
  for (const at::Tensor& tensor : value.toTensorVector()) {
    tensors.push_back(at::autocast::cached_cast(dtype, tensor, kNpu));
  }
  return tensors;
}

template <Policy policy>
void cast_and_call(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  c10::impl::ExcludeDispatchKeyGuard once(c10::DispatchKey::AutocastPrivateUse1);
  const auto first = stack->end() - static_cast<int64_t>(op.schema().arguments().size());
  const bool wide =
      policy == Policy::float32 || (policy == Policy::promote && std::any_of(first, stack->end(), has_float32));
  const auto dtype = wide ? at::kFloat : at::autocast::get_autocast_dtype(kNpu);
  std::transform(first, stack->end(), first, [&](const auto& value) { return cast(value, dtype); });
  op.callBoxed(stack);
}

template <Policy policy>
void add(torch::Library& library, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&cast_and_call<policy>>());
  }
}

}  // namespace
}  // namespace npu

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) { library.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, library) {
  npu::add<npu::Policy::lower_precision>(library, npu::kLowerPrecision);
  npu::add<npu::Policy::float32>(library, npu::kFloat32);
  npu::add<npu::Policy::promote>(library, npu::kPromote);
}
