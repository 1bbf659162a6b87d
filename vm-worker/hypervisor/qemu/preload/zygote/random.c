// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * Random numbers of QEMU's, of which RDRAND and RDSEED of an emulated processor are. The generator of the library
 * that QEMU takes them from is memory, so all children would draw the same ones, and each guest know those of the
 * others; the library would notice a fork that the C library knows of, which ours is not. The kernel's generator
 * is nobody's.
 */
#include "zygote.h"

#include <errno.h>
#include <sys/random.h>
#include <unistd.h>

static int draw(void *buffer, size_t size)
{
	for (size_t have = 0; have < size;) {
		ssize_t n = getrandom((char *)buffer + have, size - have, 0);

		if (n < 0 && errno != EINTR)
			return -1;
		if (n > 0)
			have += n;
	}
	return 0;
}

/* GnuTLS, which QEMU is mostly built with. */
int gnutls_rnd(int level, void *buffer, size_t size)
{
	(void)level;
	return draw(buffer, size) == 0 ? 0 : -206; /* GNUTLS_E_RANDOM_FAILED */
}

/* libgcrypt, which has no way to fail. */
void gcry_randomize(void *buffer, size_t size, int level)
{
	(void)level;
	if (draw(buffer, size) != 0)
		_exit(1);
}
