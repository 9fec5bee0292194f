// Reads saved plans: a text header, one line a buffer, op or weight, then the weights' bytes.
#include "program.h"

#include <cstring>
#include <locale>
#include <sstream>
#include <stdexcept>

namespace stdc {
namespace {

constexpr int kLimit = 1 << 16;  // of channels, ops and so on: what is beyond is damaged

// Of a file that may be anything: what is not printable is left out of the message.
[[noreturn]] void fail(const std::string& what) {
  std::string text;
  for (const char c : what.substr(0, 200)) text += c >= ' ' && c <= '~' ? c : '?';
  throw std::runtime_error("not a usable saved plan: " + text);
}

// The words of one line.
class Line {
 public:
  explicit Line(const std::string& text) : text_(text), in_(text) {}

  std::string word() {
    std::string w;
    if (!(in_ >> w)) fail("line ends early: " + text_);
    return w;
  }
  int number(int low = 0, int high = kLimit) {
    const std::string w = word();
    size_t used = 0;
    int n = 0;
    try {
      n = std::stoi(w, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (used != w.size() || n < low || n > high) fail(w + " in: " + text_);
    return n;
  }
  int64_t large() {
    const std::string w = word();
    size_t used = 0;
    int64_t n = -1;
    try {
      n = std::stoll(w, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (used != w.size() || n < 0) fail(w + " in: " + text_);
    return n;
  }
  float real() {
    const std::string w = word();
    std::istringstream in(w);
    in.imbue(std::locale::classic());  // a point, whatever the program's language
    float x = 0;
    if (!(in >> x) || !in.eof()) fail(w + " in: " + text_);
    return x;
  }
  void expect(const char* key) {
    if (word() != key) fail(std::string("no ") + key + " in: " + text_);
  }

 private:
  std::string text_;
  std::istringstream in_;
};

class Reader {
 public:
  Reader(const void* bytes, size_t size) : bytes_(static_cast<const char*>(bytes)), size_(size) {}

  Program read() {
    Line first(line());
    first.expect("stdc-plan");
    if (first.number() != 1) fail("written by another version of stdc_fast; save it again");
    Line head(line());
    p_.name = head.word();
    p_.dtype = dtype(head.word());
    if (p_.dtype == DType::u8) fail("maps of uint8");
    for (int n = count("buffers"); n; n--) p_.buffers.push_back(buffer());
    for (int n = count("weights"); n; n--) p_.weights.push_back(weight());
    for (int n = count("ops"); n; n--) p_.ops.push_back(op());
    Line inputs(line());
    inputs.expect("inputs");
    for (int n = inputs.number(1, kMostInputs); n; n--) p_.inputs.push_back(inputs.number(0, last_buffer()));
    Line output(line());
    output.expect("output");
    p_.output = view(output);
    if (line() != "data") fail("no data");
    at_ = (at_ + 63) / 64 * 64;
    for (Weight& w : p_.weights) {
      const size_t offset = reinterpret_cast<size_t>(w.data);
      const size_t bytes = w.count * (w.dtype == DType::f32 ? 4 : 2);
      if (at_ > size_ || offset % 4 || offset > size_ - at_ || bytes > size_ - at_ - offset) fail("it is cut off");
      w.data = bytes_ + at_ + offset;
    }
    check();
    return p_;
  }

 private:
  std::string line() {
    const void* end = at_ < size_ ? std::memchr(bytes_ + at_, '\n', size_ - at_) : nullptr;
    if (!end) fail("it is cut off");
    const std::string text(bytes_ + at_, static_cast<const char*>(end));
    at_ += text.size() + 1;
    return text;
  }

  int count(const char* key) {
    Line l(line());
    l.expect(key);
    return l.number();
  }

  int last_buffer() const { return static_cast<int>(p_.buffers.size()) - 1; }
  int last_weight() const { return static_cast<int>(p_.weights.size()) - 1; }

  static DType dtype(const std::string& name) {
    if (name == "float32") return DType::f32;
    if (name == "bfloat16") return DType::bf16;
    if (name == "uint8") return DType::u8;
    fail("dtype " + name);
  }

  Buffer buffer() {
    static const char* names[] = {"frame", "image", "act", "vector", "logits", "labels"};
    Line l(line());
    const std::string store = l.word();
    for (int i = 0; i < 6; i++)
      if (store == names[i]) {
        const int channels = l.number(1), stride = l.number(0, 256);
        if ((stride == 0) != (store == "vector")) fail("stride of " + store);
        return {static_cast<Store>(i), channels, stride, l.word()};
      }
    fail("buffer of " + store);
  }

  Weight weight() {
    Line l(line());
    Weight w{};
    w.dtype = dtype(l.word());
    if (w.dtype == DType::u8) fail("weights of uint8");
    w.data = reinterpret_cast<const void*>(static_cast<size_t>(l.large()));  // until the data is found
    w.count = 1;
    for (int n = l.number(1, 6); n; n--) {
      w.shape.push_back(l.number(1));
      w.count *= w.shape.back();
      if (w.count > (int64_t{1} << 32)) fail("weights are too large");
    }
    return w;
  }

  View view(Line& l) {
    const View v{l.number(0, last_buffer()), l.number(), l.number(1)};
    if (v.offset + v.channels > p_.buffers[v.buffer].channels) fail("view outside of " + p_.buffers[v.buffer].name);
    return v;
  }
  View optional(Line& l) {
    const std::string w = l.word();
    if (w == "-") return {};
    if (w != "+") fail("view " + w);
    return view(l);
  }

  Op op() {
    Line l(line());
    Op op{};
    const std::string kind = l.word();
    op.name = l.word();
    for (int n = l.number(1, 2); n; n--) op.inputs.push_back(view(l));
    op.output = view(l);
    if (kind == "frame") {
      op.kind = Kind::frame;
      for (float& x : op.near) x = l.real();
      for (float& x : op.border) x = l.real();
    } else if (kind == "import") {
      op.kind = Kind::import;
    } else if (kind == "export") {
      op.kind = Kind::export_;
    } else if (kind == "conv") {
      op.kind = Kind::conv;
      op.kernel = l.number(1, 3);
      op.stride = l.number(1, 2);
      op.act = l.number(0, 1);
      op.weight = l.number(0, last_weight());
      op.bias = l.number(-1, last_weight());
      op.mean = optional(l);
    } else if (kind == "down") {
      op.kind = Kind::down;
      op.pooled = optional(l);
      op.weight = l.number(0, last_weight());
      op.bias = l.number(-1, last_weight());
      op.depthwise_weight = l.number(0, last_weight());
      op.depthwise_bias = l.number(-1, last_weight());
      op.count_include_pad = l.number(0, 1);
    } else if (kind == "gate") {
      op.kind = Kind::gate;
      for (int n = l.number(1, 2); n; n--) {
        const int weight = l.number(0, last_weight()), bias = l.number(-1, last_weight());
        op.layers.push_back({weight, bias, l.number(0, 3)});
      }
    } else if (kind == "prologue") {
      op.kind = Kind::prologue;
      op.scale = optional(l);
      op.add = optional(l);
    } else if (kind == "upsample") {
      op.kind = Kind::upsample;
    } else {
      fail("op " + kind);
    }
    return op;
  }

  // That shapes fit, so that nothing has to be checked when it runs.
  void need(bool holds, const Op& op, const char* what) const {
    if (!holds) fail("op " + op.name + ": " + what);
  }
  Store store(const View& v) const { return p_.buffers[v.buffer].store; }
  int stride(const View& v) const { return p_.buffers[v.buffer].stride; }
  void vector(const Op& op, int index, DType dtype, int64_t count) const {
    if (index < 0) return;
    need(p_.weights[index].dtype == dtype && p_.weights[index].count == count, op, "weights of another size");
  }

  void check() const {
    std::vector<bool> input(p_.buffers.size());
    for (const int b : p_.inputs) input[b] = true;
    for (const int b : p_.inputs)
      if (p_.buffers[b].store != Store::frame && p_.buffers[b].store != Store::image)
        fail("input " + p_.buffers[b].name + " is no image");
    // What is read must have been written before, by one op: the scheduler waits for it.
    std::vector<std::vector<bool>> written(p_.buffers.size());
    for (size_t b = 0; b < p_.buffers.size(); b++)
      written[b].assign(p_.buffers[b].channels, input[b]);
    std::vector<bool> averaged(p_.buffers.size());
    const auto read = [&](const Op& op, const View& v) {
      for (int c = v.offset; v && c < v.offset + v.channels; c++)
        need(written[v.buffer][c], op, "reads what has not been written");
      need(!v || op.kind == Kind::gate || !averaged[v.buffer], op, "reads an average");
    };
    const auto write = [&](const Op& op, const View& v) {
      for (int c = v.offset; v && c < v.offset + v.channels; c++) {
        need(!written[v.buffer][c], op, "writes what has been written");
        written[v.buffer][c] = true;
      }
    };
    for (const Op& op : p_.ops) {
      for (const View& v : op.inputs) read(op, v);
      read(op, op.scale);
      read(op, op.add);
      write(op, op.output);
      write(op, op.pooled);
      write(op, op.mean);
      if (op.mean) averaged[op.mean.buffer] = true;
    }
    for (int c = 0; c < p_.output.channels; c++)
      if (!written[p_.output.buffer][p_.output.offset + c]) fail("its output is never written");
    int ends[2] = {0, 0};  // exports and label ops
    for (const Op& op : p_.ops) {
      const View& in = op.inputs[0];
      if (op.kind == Kind::frame || op.kind == Kind::import) need(input[in.buffer], op, "reads no input");
      if (op.kind == Kind::export_) need(op.output.buffer == p_.output.buffer && !ends[0]++, op, "second output");
      if (op.kind == Kind::upsample) need(in.buffer == p_.output.buffer && !ends[1]++, op, "second labels");
      if (store(op.output) == Store::logits)
        need(op.output.buffer == p_.output.buffer && op.output.channels == p_.buffers[op.output.buffer].channels, op,
             "logits that are not the output");
    }
    if (input[p_.output.buffer]) fail("its output is an input");
    const Store out = p_.buffers[p_.output.buffer].store;
    if ((out != Store::image && out != Store::logits) || p_.output.offset ||
        p_.output.channels != p_.buffers[p_.output.buffer].channels)
      fail("its output is no map");
    for (const Op& op : p_.ops) {
      const View& in = op.inputs[0];
      const int channels = op.output.channels;
      const int unit = p_.dtype == DType::bf16 ? 2 : 1;
      need(op.inputs.size() == 1 || op.kind == Kind::conv, op, "too many inputs");
      switch (op.kind) {
        case Kind::frame:
          need(store(in) == Store::frame && in.channels == 3 && store(op.output) == Store::act && channels == 4 &&
                   p_.buffers[op.output.buffer].channels == 4 && stride(in) == 1 && stride(op.output) == 1,
               op, "not RGB to four channels");
          break;
        case Kind::import:
          need(store(in) == Store::image && store(op.output) == Store::act && in.channels <= channels &&
                   stride(in) == stride(op.output) && in.offset == 0,
               op, "no map");
          break;
        case Kind::export_:
          need(store(in) == Store::act && store(op.output) == Store::image && in.channels == channels &&
                   stride(in) == stride(op.output),
               op, "no map");
          break;
        case Kind::conv: {
          int64_t total = 0;
          for (const View& v : op.inputs) {
            total += v.channels;
            need(store(v) == Store::act && stride(v) == stride(in), op, "inputs of different sizes");
            need(v.channels % unit == 0 && v.offset % unit == 0, op, "odd channels");
          }
          need(store(op.output) == Store::act || store(op.output) == Store::logits, op, "output is no map");
          const auto& s = p_.weights[op.weight].shape;
          // The stem's maps have a fourth channel, without weights.
          const int64_t extra = total == 4 && s.size() == 4 && s[1] == 3 ? 1 : 0;
          const bool shape = op.kernel == 2 ? s.size() == 6 && s[0] == 3 && s[1] == 3 && s[2] == channels &&
                                                  s[3] == total && s[4] == 2 && s[5] == 2
                                            : s.size() == 4 && s[0] == channels && s[1] == total - extra &&
                                                  s[2] == op.kernel && s[3] == op.kernel;
          need(shape && p_.weights[op.weight].dtype == p_.dtype, op, "weights of another shape");
          if (op.kernel == 2)
            need(op.stride == 1 && op.inputs.size() == 1 && stride(in) == 2 * stride(op.output), op, "sub-pixel form");
          else
            need(stride(op.output) == op.stride * stride(in), op, "sizes");
          vector(op, op.bias, DType::f32, channels);
          if (op.mean) need(store(op.mean) == Store::vector && op.mean.channels == channels, op, "mean");
          break;
        }
        case Kind::down: {
          const auto& s = p_.weights[op.weight].shape;
          need(store(in) == Store::act && store(op.output) == Store::act && stride(op.output) == 2 * stride(in), op,
               "sizes");
          need(in.channels % unit == 0 && in.offset % unit == 0, op, "odd channels");
          need(s.size() == 4 && s[0] == channels && s[1] == in.channels && s[2] == 1 && s[3] == 1 &&
                   p_.weights[op.weight].dtype == p_.dtype,
               op, "weights of another shape");
          vector(op, op.bias, DType::f32, channels);
          vector(op, op.depthwise_weight, DType::f32, 9 * channels);
          vector(op, op.depthwise_bias, DType::f32, channels);
          if (op.pooled)
            need(store(op.pooled) == Store::act && op.pooled.channels == channels &&
                     stride(op.pooled) == stride(op.output),
                 op, "pool");
          break;
        }
        case Kind::gate: {
          int64_t width = in.channels;
          need(store(in) == Store::vector && store(op.output) == Store::vector, op, "no vectors");
          for (const auto& layer : op.layers) {
            const Weight& w = p_.weights[layer.weight];
            need(w.dtype == DType::f32 && w.shape.size() == 2 && w.shape[1] == width, op, "weights of another shape");
            width = w.shape[0];
            vector(op, layer.bias, DType::f32, width);
          }
          need(width == channels, op, "output of another size");
          break;
        }
        case Kind::prologue:
          need(store(in) == Store::act && store(op.output) == Store::act && stride(in) == stride(op.output) &&
                   in.channels == channels,
               op, "sizes");
          if (op.scale) need(store(op.scale) == Store::vector && op.scale.channels == channels, op, "scale");
          if (op.add)
            need(op.add.channels == channels && (store(op.add) == Store::vector ||
                                                 (store(op.add) == Store::act && stride(op.add) == stride(in))),
                 op, "add");
          break;
        case Kind::upsample:
          need(store(in) == Store::logits && store(op.output) == Store::labels && in.offset == 0 &&
                   in.channels == p_.buffers[in.buffer].channels && in.channels <= 256,
               op, "no logits");
          break;
      }
    }
  }

  const char* bytes_;
  size_t size_, at_ = 0;
  Program p_;
};

}  // namespace

Program parse(const void* bytes, size_t size) { return Reader(bytes, size).read(); }

}  // namespace stdc
