// tvm_ffi's extension calls this when it is imported, to hold on to a library that only TVM's own tests need.
extern "C" __attribute__((visibility("default"))) int TVMFFITestingDummyTarget() { return 0; }
