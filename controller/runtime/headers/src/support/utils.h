// Questions about text.
#ifndef TVM_SUPPORT_UTILS_H_
#define TVM_SUPPORT_UTILS_H_

#include <tvm/ffi/string.h>

#include <algorithm>
#include <string>

namespace tvm {
namespace support {

inline bool StartsWith(const ffi::String& text, const char* beginning) {
  return std::string(text).rfind(beginning, 0) == 0;
}

// Whether it is digits and nothing else.
inline bool IsNumber(const ffi::String& text) {
  const char* end = text.data() + text.size();
  return text.size() != 0 && std::all_of(text.data(), end, [](char c) { return '0' <= c && c <= '9'; });
}

}  // namespace support
}  // namespace tvm

#endif  // TVM_SUPPORT_UTILS_H_
