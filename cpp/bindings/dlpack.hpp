// The layout of DLPack's structures, version 1 (https://dmlc.github.io/dlpack).
#pragma once

#include <cstdint>

namespace vegrad::dlpack {

constexpr std::int32_t kCpu = 1, kCuda = 2, kCudaHost = 3, kMetal = 8, kRocm = 10, kRocmHost = 11;
constexpr std::uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6;
constexpr std::uint64_t kReadOnly = 1, kCopied = 2;

struct Device {
  std::int32_t type, id;
};
struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t *shape, *strides;  // in elements; no strides: contiguous
  std::uint64_t byte_offset;
};
struct Version {
  std::uint32_t major, minor;
};

struct ManagedTensor {  // in a capsule named "dltensor"
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};
struct VersionedTensor {  // in a capsule named "dltensor_versioned"
  Version version;
  void* context;
  void (*deleter)(VersionedTensor*);
  std::uint64_t flags;
  Tensor tensor;
};

// In a capsule named "dlpack_exchange_api", an attribute of the tensor's type.
struct ExchangeApi {
  Version version;
  ExchangeApi* older;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // may be null
  void* current_stream;
};

}  // namespace vegrad::dlpack
