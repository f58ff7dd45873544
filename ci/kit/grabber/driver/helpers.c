// SPDX-License-Identifier: GPL-2.0
/* The C functions that ringbar/driver/abstractions needs. */
#include "../ringbar/driver/helpers.c"
