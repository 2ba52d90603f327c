/* For sketches on ESP32: the kit, its socket and the port. */
#include "../ports/posix/cd_socket.h"

#include "../ports/esp-idf/cd_esp.h"
