// A CUDA runtime that does nothing but write down what it is asked; as much of it as csrc/cuda/replay.cu needs.
#pragma once

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <map>
#include <vector>

#define CUDART_VERSION 13000

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };
struct Kernel {
  void* function;
  std::vector<unsigned char> bytes;
};
using cudaGraphNode_t = Kernel*;
using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
struct dim3 {
  unsigned x, y, z;
};
struct cudaKernelNodeParams {
  void* func;
  dim3 gridDim, blockDim;
  unsigned sharedMemBytes;
  void** kernelParams;
  void** extra;
};

// What tests set and read.
struct Fake {
  int device = 0, fail = 0;  // the call that fails, counted down
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  std::map<cudaGraphNode_t, std::vector<unsigned char>> executable;  // arguments that launches have from now on
  cudaGraphNode_t last = nullptr;
  static Fake& it() {
    static Fake fake;
    return fake;
  }
  cudaError_t answer(const char* what) {
    if (fail && !--fail) return printf("%s fails\n", what), cudaErrorInvalidValue;
    return cudaSuccess;
  }
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = Fake::it().device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  printf("device %d\n", device);
  return Fake::it().device = device, cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = Fake::it().capturing, cudaSuccess;
}
inline cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, void*, void*,
                                            const cudaGraphNode_t** nodes, void*, size_t* count) {
  *status = Fake::it().capturing, *nodes = &Fake::it().last, *count = Fake::it().last ? 1 : 0;
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  printf("copy %p %p %zu on %p\n", to, from, bytes, static_cast<void*>(stream));
  return Fake::it().answer("copy");
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  printf("launch %p on %p", static_cast<void*>(graph), static_cast<void*>(stream));
  for (const auto& [node, bytes] : Fake::it().executable) {
    void* places[2];
    memcpy(places, bytes.data(), sizeof places);
    printf(", %p %p", places[0], places[1]);
  }
  printf("\n");
  return Fake::it().answer("launch");
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  printf("record %p on %p\n", static_cast<void*>(event), static_cast<void*>(stream));
  return Fake::it().answer("record");
}
inline cudaError_t cudaGraphKernelNodeGetParams(cudaGraphNode_t node, cudaKernelNodeParams* params) {
  static std::map<cudaGraphNode_t, void*> argument;
  argument[node] = node->bytes.data();
  *params = {node->function, {1, 2, 3}, {32, 1, 1}, 7, &argument[node], nullptr};
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t, cudaGraphNode_t node,
                                                    const cudaKernelNodeParams* params) {
  const bool same = params->func == node->function && params->gridDim.z == 3 && params->sharedMemBytes == 7;
  const auto* bytes = static_cast<unsigned char*>(params->kernelParams[0]);
  printf("set %s\n", same ? "as captured" : "another kernel");
  if (const cudaError_t code = Fake::it().answer("set")) return code;
  Fake::it().executable[node] = {bytes, bytes + node->bytes.size()};
  return cudaSuccess;
}
