// The channel over a pipe needs read, write and fork alone.
#ifndef TVM_SUPPORT_PIPE_H_
#define TVM_SUPPORT_PIPE_H_

#include <unistd.h>

#endif  // TVM_SUPPORT_PIPE_H_
