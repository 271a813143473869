package forward

// linux/include/uapi/asm-generic/unistd.h
const (
	sysOpenat    = 56
	sysClose     = 57
	sysRead      = 63
	sysWrite     = 64
	sysPpoll     = 73
	sysExitGroup = 94
	sysSocket    = 198
	sysConnect   = 203
	sysShutdown  = 210
	sysSendmsg   = 211
	sysStatx     = 291
)
