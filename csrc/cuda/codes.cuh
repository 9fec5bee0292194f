// Codes of the CUDA runtime, each checked, and the device that calls are for.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace stdc {
namespace gpu {

inline void check(cudaError_t code, const std::string& what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // not to be found again by somebody else's call
  throw std::runtime_error(what + ": " + cudaGetErrorString(code));
}

// Makes a device current as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "the current device");
    if (device >= 0 && device != before_)
      check(cudaSetDevice(device), "device " + std::to_string(device));
    else
      before_ = -1;
  }
  ~DeviceGuard() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;
};

}  // namespace gpu
}  // namespace stdc
