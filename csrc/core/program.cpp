// Reads saved plans: a text header, one line a buffer, op or weight, then the weights' bytes.
#include "program.h"

#include <cstring>

#include "checker.h"
#include "dtypes.h"
#include "line.h"

namespace stdc {
namespace {

class Reader {
 public:
  Reader(const void* bytes, size_t size, const KernelSet& kernels)
      : bytes_(static_cast<const char*>(bytes)), size_(size), kernels_(kernels) {}

  Program read() {
    Line first = line();
    first.expect("stdc-plan");
    p_.version = first.number();
    if (p_.version != 2 && p_.version != 3) fail("written by another version of stdc_fast; save it again");
    Line head = line();
    p_.name = head.word();
    p_.dtype = dtype(head);
    if (!traits(p_.dtype).maps) fail(std::string("maps of ") + traits(p_.dtype).name);
    for (int n = count("buffers"); n; n--) p_.buffers.push_back(buffer());
    for (int n = count("weights"); n; n--) p_.weights.push_back(weight());
    for (int n = count("ops"); n; n--) p_.ops.push_back(op());
    Line inputs = line();
    inputs.expect("inputs");
    for (int n = inputs.number(1, kMostInputs); n; n--) p_.inputs.push_back(inputs.buffer());
    Line output = line();
    output.expect("output");
    p_.output = output.view();
    if (text() != "data") fail("no data");
    at_ = (at_ + 63) / 64 * 64;
    for (Weight& w : p_.weights) {
      const size_t offset = reinterpret_cast<size_t>(w.data);
      const size_t bytes = w.count * traits(w.dtype).bytes;
      if (at_ > size_ || offset % 4 || offset > size_ - at_ || bytes > size_ - at_ - offset) fail("it is cut off");
      w.data = bytes_ + at_ + offset;
    }
    check();
    return std::move(p_);
  }

 private:
  std::string text() {
    const void* end = at_ < size_ ? std::memchr(bytes_ + at_, '\n', size_ - at_) : nullptr;
    if (!end) fail("it is cut off");
    const std::string found(bytes_ + at_, static_cast<const char*>(end));
    at_ += found.size() + 1;
    return found;
  }
  Line line() { return Line(text(), p_); }

  int count(const char* key) {
    Line l = line();
    l.expect(key);
    return l.number();
  }

  static DType dtype(Line& l) {
    const std::string name = l.word();
    DType found;
    if (!find_dtype(name, found)) fail("dtype " + name);
    return found;
  }

  Buffer buffer() {
    static const struct {
      const char* name;
      Store store;
      int zero;
    } stores[] = {{"frame", Store::frame, 0},   {"image", Store::image, 0},   {"act", Store::act, 0},
                  {"vector", Store::vector, 0}, {"logits", Store::logits, 0}, {"labels", Store::labels, 0},
                  {"u8", Store::levels, 0},     {"s8", Store::levels, 128}};
    Line l = line();
    const std::string store = l.word();
    for (const auto& known : stores)
      if (store == known.name) {
        const int channels = l.number(1), stride = l.number(0, 256);
        if ((stride == 0) != (store == "vector")) fail("stride of " + store);
        return {known.store, channels, stride, l.word(), known.zero};
      }
    fail("buffer of " + store);
  }

  Weight weight() {
    Line l = line();
    Weight w{};
    w.dtype = dtype(l);
    if (!traits(w.dtype).weights) fail(std::string("weights of ") + traits(w.dtype).name);
    w.data = reinterpret_cast<const void*>(static_cast<size_t>(l.large()));  // until the data is found
    w.count = 1;
    for (int n = l.number(1, 6); n; n--) {
      w.shape.push_back(l.number(1));
      w.count *= w.shape.back();
      if (w.count > (int64_t{1} << 32)) fail("weights are too large");
    }
    return w;
  }

  std::unique_ptr<Op> op() {
    Line l = line();
    const std::string kind = l.word();
    std::unique_ptr<Op> op = make_op(kind);
    if (!op) fail("op " + kind);
    op->name = l.word();
    for (int n = l.number(1, 2); n; n--) op->inputs.push_back(l.view());
    op->output = l.view();
    op->reads = op->inputs;
    op->writes = {op->output};
    op->parse(l);
    return op;
  }

  // That everything fits, so that nothing has to be checked when it runs.
  void check() const {
    const Checker c(p_, kernels_);
    for (const int b : p_.inputs)
      if (p_.buffers[b].store != Store::frame && p_.buffers[b].store != Store::image)
        fail("input " + p_.buffers[b].name + " is no image");
    check_order(c);
    if (c.input(p_.output)) fail("its output is an input");
    const Store out = c.store(p_.output);
    if ((out != Store::image && out != Store::logits) || !c.whole(p_.output)) fail("its output is no map");
    for (const auto& op : p_.ops) {
      if (c.store(op->output) == Store::logits)
        c.need(op->output.buffer == p_.output.buffer && c.whole(op->output), *op, "logits that are not the output");
      op->check(c);
    }
  }

  // That what is read was written before, by one op: the scheduler waits for it.
  void check_order(const Checker& checker) const {
    std::vector<std::vector<bool>> written(p_.buffers.size());
    for (size_t b = 0; b < p_.buffers.size(); b++) written[b].assign(p_.buffers[b].channels, false);
    for (const int b : p_.inputs) written[b].assign(p_.buffers[b].channels, true);
    std::vector<bool> averaged(p_.buffers.size());
    for (const auto& op : p_.ops) {
      for (const View& v : op->reads) {
        for (int c = v.offset; c < v.offset + v.channels; c++)
          checker.need(written[v.buffer][c], *op, "reads what has not been written");
        checker.need(op->takes_averages || !averaged[v.buffer], *op, "reads an average");
      }
      for (const View& v : op->writes)
        for (int c = v.offset; c < v.offset + v.channels; c++) {
          checker.need(!written[v.buffer][c], *op, "writes what has been written");
          written[v.buffer][c] = true;
        }
      if (op->mean) averaged[op->mean.buffer] = true;
    }
    for (int c = 0; c < p_.output.channels; c++)
      if (!written[p_.output.buffer][p_.output.offset + c]) fail("its output is never written");
  }

  const char* bytes_;
  size_t size_, at_ = 0;
  const KernelSet& kernels_;
  Program p_;
};

}  // namespace

Program parse(const void* bytes, size_t size, const KernelSet& kernels) { return Reader(bytes, size, kernels).read(); }

}  // namespace stdc
