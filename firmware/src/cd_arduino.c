/* Arduino compiles only this folder, and finds headers only here: certdist.h and certdist_dtls.h
 * beside this file lead to include/, and this file adds the port for ESP32. */
#if defined(ARDUINO_ARCH_ESP32)
#include "../ports/posix/cd_socket.c"

#include "../ports/esp-idf/cd_esp.c"
#endif
