// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// A 32-bit program without a C library: makes a directory, and ends with the error number that the kernel gave.
void _start(void) {
	int result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(39), "b"("/tmp/made"), "c"(0755) : "memory");
	__asm__ volatile("int $0x80" : : "a"(1), "b"(-result));
	__builtin_unreachable();
}
