// What the device needs besides Paddle's own way out, which is to run an operator without a kernel on the CPU:
//
// - Most of Paddle's CPU operators know no float16 and bfloat16. Here they get kernels that widen the inputs, run the
//   float32 one and round its results, as a device computes that sums in float32.
// - Paddle itself fills tensors and adds gradients up with the kernels of `full` and `add`, and where the device has
//   none, runs the CPU's on the device's pointers.
// - The gradient of a product whose one factor needs none: Paddle frees the other factor's memory and cannot, then,
//   copy it to the CPU. It gets a kernel on the device, which reads what is there.
//
// The kernels on the device see its memory as it does itself: they make no copies between host and device. An operator
// that still fails with "kernel is not registered" belongs into the list at the end.

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <vector>

#include "paddle/phi/backends/context_pool.h"
#include "paddle/phi/backends/cpu/cpu_context.h"
#include "paddle/phi/backends/custom/custom_context.h"
#include "paddle/phi/core/dense_tensor.h"
#include "paddle/phi/core/kernel_factory.h"
#include "paddle/phi/core/kernel_utils.h"
#include "paddle/phi/kernels/adamw_kernel.h"
#include "paddle/phi/kernels/batch_norm_grad_kernel.h"
#include "paddle/phi/kernels/batch_norm_kernel.h"
#include "paddle/phi/kernels/conv_grad_kernel.h"
#include "paddle/phi/kernels/conv_kernel.h"
#include "paddle/phi/kernels/elementwise_add_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_add_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_kernel.h"
#include "paddle/phi/kernels/full_kernel.h"
#include "paddle/phi/kernels/gelu_grad_kernel.h"
#include "paddle/phi/kernels/gelu_kernel.h"
#include "paddle/phi/kernels/layer_norm_grad_kernel.h"
#include "paddle/phi/kernels/layer_norm_kernel.h"
#include "paddle/phi/kernels/matmul_grad_kernel.h"
#include "paddle/phi/kernels/matmul_kernel.h"
#include "paddle/phi/kernels/softmax_grad_kernel.h"
#include "paddle/phi/kernels/softmax_kernel.h"

extern "C" char* test_device_bytes(int device, const void* pointer, size_t size);  // device.cc

namespace {

using phi::DataType;
using phi::DenseTensor;

const phi::CPUContext& Cpu() {
  return *static_cast<phi::CPUContext*>(phi::DeviceContextPool::Instance().Get(phi::CPUPlace()));
}

bool IsHalf(DataType type) { return type == DataType::FLOAT16 || type == DataType::BFLOAT16; }

template <typename From, typename To>
DenseTensor Converted(const DenseTensor& tensor) {
  DenseTensor result;
  result.Resize(tensor.dims());
  To* to = Cpu().Alloc<To>(&result);
  const From* from = tensor.data<From>();
  for (int64_t i = 0; i < tensor.numel(); ++i) to[i] = static_cast<To>(from[i]);
  return result;
}

DenseTensor Widened(const DenseTensor& tensor) {
  return tensor.dtype() == DataType::FLOAT16 ? Converted<phi::dtype::float16, float>(tensor)
                                             : Converted<phi::dtype::bfloat16, float>(tensor);
}

DenseTensor Rounded(const DenseTensor& tensor, DataType type) {
  return type == DataType::FLOAT16 ? Converted<float, phi::dtype::float16>(tensor)
                                   : Converted<float, phi::dtype::bfloat16>(tensor);
}

bool IsOnCpu(const phi::DeviceContext& context) { return context.GetPlace().GetType() == phi::AllocationType::CPU; }

// Where a kernel of this context reads and writes a tensor.
void* BytesOf(const DenseTensor& tensor, size_t size, const phi::DeviceContext& context) {
  if (IsOnCpu(context)) return const_cast<void*>(tensor.data());
  context.Wait();
  void* bytes = test_device_bytes(context.GetPlace().GetDeviceId(), tensor.data(), size);
  if (!bytes) throw std::runtime_error("a kernel's tensor is not on the device");
  return bytes;
}

// On the CPU and in float32. Where the memory was freed, zeros: the kernel reads, but does not use it.
DenseTensor ForCpu(const DenseTensor& tensor, const phi::DeviceContext& context) {
  if (!tensor.numel()) return tensor;
  const size_t size = tensor.numel() * phi::SizeOf(tensor.dtype());
  DenseTensor here;
  here.Resize(tensor.dims());
  if (tensor.capacity() < size) {
    std::memset(Cpu().Alloc<float>(&here), 0, tensor.numel() * sizeof(float));
    return here;
  }
  if (IsOnCpu(context)) {
    here = tensor;
  } else {
    std::memcpy(Cpu().Alloc(&here, tensor.dtype()), BytesOf(tensor, size, context), size);
  }
  return IsHalf(here.dtype()) ? Widened(here) : here;
}

// An argument of a kernel as the float32 kernel gets it; `Finish` hands back what was computed.
template <typename T>
struct Argument {
  T value;
  Argument(T given, const phi::DeviceContext&) : value(given) {}
  T get() { return value; }
  void Finish() {}
};

template <>
struct Argument<const DenseTensor&> {
  DenseTensor value;
  Argument(const DenseTensor& given, const phi::DeviceContext& context) : value(ForCpu(given, context)) {}
  const DenseTensor& get() { return value; }
  void Finish() {}
};

template <>
struct Argument<const paddle::optional<DenseTensor>&> {
  paddle::optional<DenseTensor> value;
  Argument(const paddle::optional<DenseTensor>& given, const phi::DeviceContext& context) {
    if (given) value = ForCpu(*given, context);
  }
  const paddle::optional<DenseTensor>& get() { return value; }
  void Finish() {}
};

template <>
struct Argument<DenseTensor*> {
  DenseTensor* const target;
  const phi::DeviceContext& context;
  const DataType type;  // what the operator's shape inference has decided
  DenseTensor value;

  Argument(DenseTensor* given, const phi::DeviceContext& context)
      : target(given), context(context), type(given ? given->dtype() : DataType::UNDEFINED) {
    if (given) value.Resize(given->dims());
  }

  bool Direct() const { return IsOnCpu(context) && !IsHalf(type); }

  DenseTensor* get() { return !target || Direct() ? target : &value; }

  void Finish() {
    if (!target || Direct() || !value.initialized()) return;
    DenseTensor result = IsHalf(type) ? Rounded(value, type) : value;
    const size_t size = result.numel() * phi::SizeOf(type);
    target->Resize(result.dims());
    context.Alloc(target, type);
    if (size) std::memcpy(BytesOf(*target, size, context), result.data(), size);
  }
};

template <typename Signature>
struct OnAnyDevice;

template <typename... Args>
struct OnAnyDevice<void(const phi::CPUContext&, Args...)> {
  using Function = void (*)(const phi::DeviceContext&, Args...);
};

using AdamW = OnAnyDevice<decltype(phi::AdamwDenseKernel<float, phi::CPUContext>)>::Function;

// The CPU's AdamW knows no master weight: let it update that one in place of the weight, which is its rounded copy.
template <typename Arguments>
void TakeMasterWeight(Arguments& all) {
  const auto& master_weight = std::get<8>(all).value;
  if (master_weight.get_ptr()) std::get<0>(all).value = *master_weight;
}

template <typename Arguments>
void KeepMasterWeight(Arguments& all) {
  const DenseTensor& updated = std::get<21>(all).value;
  DenseTensor* kept = std::get<27>(all).target;
  if (kept) std::memcpy(Cpu().Alloc<float>(kept), updated.data<float>(), updated.numel() * sizeof(float));
}

template <int Number, typename Signature>
struct Widening;

template <int Number, typename... Args>
struct Widening<Number, void(const phi::CPUContext&, Args...)> {
  using Function = void (*)(const phi::DeviceContext&, Args...);
  static inline Function float32 = nullptr;

  template <typename Context>
  static void Run(const Context& context, Args... args) {
    std::tuple<Argument<Args>...> all{Argument<Args>(args, context)...};
    constexpr bool is_adamw = std::is_same_v<Function, AdamW>;
    if constexpr (is_adamw) TakeMasterWeight(all);
    std::apply([](auto&... argument) { float32(Cpu(), argument.get()...); }, all);
    if constexpr (is_adamw) KeepMasterWeight(all);
    std::apply([](auto&... argument) { (argument.Finish(), ...); }, all);
  }
};

template <typename Here, typename Context>
phi::Kernel KernelOf() {
  constexpr auto* run = &Here::template Run<Context>;
  using Implementation = phi::KernelImpl<std::remove_const_t<decltype(run)>, run>;
  return phi::Kernel(&Implementation::Compute, reinterpret_cast<void*>(&Implementation::VariadicCompute));
}

void Adapt(phi::TensorArgDef& tensor, const phi::KernelKey& key) {
  tensor.SetBackend(key.backend());
  if (tensor.dtype == DataType::FLOAT32) tensor.SetDataType(key.dtype());
}

void Adapt(phi::KernelArgsDef& arguments, const phi::KernelKey& key) {
  for (auto& input : arguments.input_defs()) Adapt(input, key);
  for (auto& output : arguments.output_defs()) Adapt(output, key);
}

template <int Number, typename Signature>
void Register(const char* name, bool on_device, const std::vector<DataType>& types) {
  auto& kernels = phi::KernelFactory::Instance().kernels()[name];
  const auto layout = phi::DataLayout::ALL_LAYOUT;
  const auto backend = on_device ? paddle::experimental::StringToBackend(DEVICE_TYPE) : phi::Backend::CPU;
  const phi::Kernel float32 = kernels.at(phi::KernelKey(phi::Backend::CPU, layout, DataType::FLOAT32));
  using Here = Widening<Number, Signature>;
  Here::float32 = float32.GetVariadicKernelFn<typename Here::Function>();
  for (auto type : types) {
    const phi::KernelKey key(backend, layout, type);
    if (kernels.count(key)) continue;
    phi::Kernel kernel = on_device ? KernelOf<Here, phi::CustomContext>() : KernelOf<Here, phi::CPUContext>();
    *kernel.mutable_args_def() = float32.args_def();
    Adapt(*kernel.mutable_args_def(), key);
    kernels[key] = kernel;
  }
}

}  // namespace

#define REGISTER(name, Function, on_device, ...) \
  Register<__COUNTER__, decltype(phi::Function<float, phi::CPUContext>)>(#name, on_device, {__VA_ARGS__});
#define ON_CPU(name, Function) REGISTER(name, Function, false, DataType::FLOAT16, DataType::BFLOAT16)
#define ON_CPU_FLOAT16(name, Function) REGISTER(name, Function, false, DataType::FLOAT16)
#define ON_DEVICE(name, Function) \
  REGISTER(name, Function, true, DataType::FLOAT32, DataType::FLOAT16, DataType::BFLOAT16)

// Not more types than Ascend's plugin has (PaddleCustomDevice, backends/npu/kernels, commit 77090b64). Softmax is there
// so that it could run in half precision: that it does not is the project's doing.
void RegisterKernels() {
  ON_CPU(adamw, AdamwDenseKernel)
  ON_CPU(add_grad, AddGradKernel)
  ON_CPU_FLOAT16(batch_norm, BatchNormKernel)
  ON_CPU_FLOAT16(batch_norm_grad, BatchNormGradKernel)
  ON_CPU(conv2d, ConvKernel)
  ON_CPU(conv2d_grad, ConvGradKernel)
  ON_CPU_FLOAT16(depthwise_conv2d, DepthwiseConvKernel)
  ON_CPU_FLOAT16(depthwise_conv2d_grad, DepthwiseConvGradKernel)
  ON_CPU(gelu, GeluKernel)
  ON_CPU(gelu_grad, GeluGradKernel)
  ON_CPU(layer_norm, LayerNormKernel)
  ON_CPU(layer_norm_grad, LayerNormGradKernel)
  ON_CPU(matmul, MatmulKernel)
  ON_CPU(matmul_grad, MatmulGradKernel)
  ON_CPU(multiply, MultiplyKernel)
  ON_CPU(softmax, SoftmaxKernel)
  ON_CPU(softmax_grad, SoftmaxGradKernel)
  ON_DEVICE(add, AddKernel)
  ON_DEVICE(full, FullKernel)
  ON_DEVICE(multiply_grad, MultiplyGradKernel)
}
