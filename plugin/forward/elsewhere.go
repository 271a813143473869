//go:build !amd64 && !arm64

package forward

// Rest is empty: on this architecture the program asks the daemon itself.
type Rest struct {
	Stdin         []byte
	Begun, Silent bool
}

// Left returns an empty Rest.
func Left() Rest { return Rest{} }
