#include "../include/certdist.h"
