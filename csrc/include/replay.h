// A captured graph with what goes around it, in one call: frames in, labels out, an event. It knows nothing of torch.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

namespace stdc {
namespace gpu {

// Where a graph has its frames and its labels; both are dense bytes.
struct Places {
  void* frame;
  size_t frame_bytes;
  void* labels;
  size_t labels_bytes;
};

// A node that was captured, and the bytes of its kernel's only argument.
struct Node {
  void* handle;
  size_t bytes;
};

// One at a time: callers have a lock, as a graph may be neither launched nor changed by two threads at once.
class Replay {
 public:
  // The graph and the event belong to the caller. With `nodes`, the one that reads the frame and the one that writes
  // the labels, these get the caller's places instead of copies; they belong to a graph that the caller keeps.
  // NOTE: launches that are on their way keep what they were launched with.
  Replay(void* graph, void* event, int device, const Places& places, const std::vector<Node>& nodes);

  // Labels of a frame, put on a stream, and the event after them; false, and nothing, where the stream is captured.
  bool operator()(void* stream, const void* frame, void* labels);
  // The graph has its own places again, for whoever launches it without this.
  void reset();

 private:
  struct Argument {
    void* node;
    std::vector<unsigned char> bytes;
    size_t at;        // where in it the pointer is
    const void* now;  // what the graph has there
  };
  void set(Argument& argument, const void* place);

  void *graph_, *event_;
  int device_;
  Places places_;
  std::vector<Argument> arguments_;  // of the frame and of the labels, or none
};

// The node that was captured last on a stream that is being captured.
void* captured_node(void* stream);

}  // namespace gpu
}  // namespace stdc
