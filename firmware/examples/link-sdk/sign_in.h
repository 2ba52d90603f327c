#ifndef SIGN_IN_H
#define SIGN_IN_H

#include "certdist.h"

/* Makes an MQTT client of the C Link SDK with the certificate, host and port in it. `where` and
 * `tls` are those of cd_sign_in. Returns the SDK's handle, or NULL. */
void *make_mqtt_client(const struct cd_certificate *, const char *where, bool tls, cd_hmac *);

#endif
