#include "../include/certdist_dtls.h"
