// A replay in one call. On the host alone: tests compile it with a runtime that only writes down what it is asked.
#if defined(__CUDACC__) || defined(STDC_FAKE_CUDA)
#include "replay.h"

#include <string.h>

#include "codes.cuh"

namespace stdc {
namespace gpu {

Replay::Replay(void* graph, void* event, int device, const Places& places, const std::vector<Node>& nodes)
    : graph_(graph), event_(event), device_(device), places_(places) {
  if (!graph || !event || !places.frame || !places.labels) throw std::invalid_argument("a replay lacks its graph");
  if (nodes.empty()) return;
  if (nodes.size() != 2) throw std::invalid_argument("a replay has two nodes or none");
  const DeviceGuard guard(device_);
  const void* own[2] = {places.frame, places.labels};
  for (int i = 0; i < 2; i++) {
    cudaKernelNodeParams params{};
    check(cudaGraphKernelNodeGetParams(static_cast<cudaGraphNode_t>(nodes[i].handle), &params), "arguments of a node");
    const auto* from = static_cast<const unsigned char*>(params.kernelParams[0]);
    Argument argument{nodes[i].handle, {from, from + nodes[i].bytes}, 0, own[i]};
    int found = 0;
    for (size_t at = 0; at + sizeof(void*) <= nodes[i].bytes; at += sizeof(void*))
      if (memcmp(from + at, &own[i], sizeof(void*)) == 0) argument.at = at, found++;
    if (found != 1) throw std::invalid_argument("a node has its place " + std::to_string(found) + " times");
    arguments_.push_back(argument);
  }
}

bool Replay::operator()(void* handle, const void* frame, void* labels) {
  const DeviceGuard guard(device_);
  const auto stream = static_cast<cudaStream_t>(handle);
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status), "whether a stream is captured");
  if (status != cudaStreamCaptureStatusNone) return false;
  if (arguments_.empty()) {
    check(cudaMemcpyAsync(places_.frame, frame, places_.frame_bytes, cudaMemcpyDeviceToDevice, stream), "frames in");
  } else {
    set(arguments_[0], frame);
    set(arguments_[1], labels);
  }
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_), stream), "a graph's launch");
  if (arguments_.empty()) {
    const auto code = cudaMemcpyAsync(labels, places_.labels, places_.labels_bytes, cudaMemcpyDeviceToDevice, stream);
    check(code, "labels out");
  }
  check(cudaEventRecord(static_cast<cudaEvent_t>(event_), stream), "the end of a graph");
  return true;
}

void Replay::reset() {
  if (arguments_.empty()) return;
  const DeviceGuard guard(device_);
  set(arguments_[0], places_.frame);
  set(arguments_[1], places_.labels);
}

void Replay::set(Argument& argument, const void* place) {
  if (argument.now == place) return;
  const auto node = static_cast<cudaGraphNode_t>(argument.node);
  cudaKernelNodeParams params{};
  check(cudaGraphKernelNodeGetParams(node, &params), "arguments of a node");  // grid and function, as captured
  memcpy(argument.bytes.data() + argument.at, &place, sizeof place);
  void* bytes[] = {argument.bytes.data()};
  params.kernelParams = bytes;
  argument.now = nullptr;  // unknown, should this fail
  const auto code = cudaGraphExecKernelNodeSetParams(static_cast<cudaGraphExec_t>(graph_), node, &params);
  check(code, "another place of a node");
  argument.now = place;
}

void* captured_node(void* handle) {
  const auto stream = static_cast<cudaStream_t>(handle);
  cudaStreamCaptureStatus status;
  const cudaGraphNode_t* nodes = nullptr;
  size_t count = 0;
#if CUDART_VERSION >= 13000
  check(cudaStreamGetCaptureInfo(stream, &status, nullptr, nullptr, &nodes, nullptr, &count), "what is captured");
#elif CUDART_VERSION >= 12030
  check(cudaStreamGetCaptureInfo_v3(stream, &status, nullptr, nullptr, &nodes, nullptr, &count), "what is captured");
#else
  check(cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, nullptr, &nodes, &count), "what is captured");
#endif
  if (status != cudaStreamCaptureStatusActive || count != 1)
    throw std::runtime_error("a stream that is captured has " + std::to_string(count) + " last nodes");
  return nodes[0];
}

}  // namespace gpu
}  // namespace stdc
#endif
