// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// func rdrand() uint64
TEXT ·rdrand(SB), NOSPLIT, $0-8
again:
	BYTE $0x48; BYTE $0x0f; BYTE $0xc7; BYTE $0xf0 // RDRAND AX
	JCC again
	MOVQ AX, ret+0(FP)
	RET

// func rdseed() uint64
TEXT ·rdseed(SB), NOSPLIT, $0-8
again:
	BYTE $0x48; BYTE $0x0f; BYTE $0xc7; BYTE $0xf8 // RDSEED AX
	JCC again
	MOVQ AX, ret+0(FP)
	RET
