package lab

// Abandon lets go of the laboratory as the kernel does when its owner dies.
func (l *Lab) Abandon() { l.lock.Close() }
