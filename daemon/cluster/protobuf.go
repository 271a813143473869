package cluster

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// This file reads Nodes as protobuf, of which a list costs an API server a fifth of the work for JSON. It reads only the
// fields of usedNode: the types of k8s.io/api would make edgewayd 6 MB larger. The numbers of the fields are those of
// k8s.io/api/core/v1/generated.proto and k8s.io/apimachinery/pkg/{apis/meta/v1,runtime}/generated.proto.

// protobufMagic begins each object that an API server sends as protobuf. A runtime.Unknown follows, which has the object
// in field 2 (k8s.io/apimachinery/pkg/runtime/serializer/protobuf).
const protobufMagic = "k8s\x00"

// errProtobuf is text that is not the protobuf of a Kubernetes object.
var errProtobuf = errors.New("an answer that is not valid protobuf")

// message calls do at each field of a message that is a text, bytes or a message.
func message(b []byte, do func(field protowire.Number, value []byte) error) error {
	for len(b) > 0 {
		field, form, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errProtobuf
		}
		size := protowire.ConsumeFieldValue(field, form, b[n:])
		if size < 0 {
			return errProtobuf
		}
		if form == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(b[n:])
			if err := do(field, value); err != nil {
				return err
			}
		}
		b = b[n+size:]
	}
	return nil
}

// inside calls do at each field of the message that is reached through these fields.
func inside(b []byte, do func(field protowire.Number, value []byte) error, path ...protowire.Number) error {
	if len(path) == 0 {
		return message(b, do)
	}
	return message(b, func(field protowire.Number, value []byte) error {
		if field != path[0] {
			return nil
		}
		return inside(value, do, path[1:]...)
	})
}

// unwrap returns the object behind protobufMagic, and its kind.
func unwrap(b []byte) (object []byte, name string, err error) {
	b, ok := bytes.CutPrefix(b, []byte(protobufMagic))
	if !ok {
		return nil, "", errProtobuf
	}
	err = message(b, func(field protowire.Number, value []byte) error {
		switch field {
		case 1:
			name = typeMetaKind(value)
		case 2:
			object = value
		}
		return nil
	})
	return object, name, err
}

// typeMetaKind is the kind of a runtime.TypeMeta.
func typeMetaKind(b []byte) (name string) {
	_ = message(b, func(field protowire.Number, value []byte) error { // text that is not valid names no kind
		if field == 2 {
			name = string(value)
		}
		return nil
	})
	return name
}

// read reads a Node.
func (n *usedNode) read(b []byte) error {
	labels := map[string]string{}
	n.Metadata.Annotations = map[string]string{}
	var podCIDRs []string
	err := errors.Join(
		inside(b, func(field protowire.Number, value []byte) error {
			switch field {
			case 1:
				n.Metadata.Name = string(value)
			case 6:
				n.Metadata.ResourceVersion = string(value)
			case 11:
				return entry(labels, value)
			case 12:
				return entry(n.Metadata.Annotations, value)
			}
			return nil
		}, 1),
		inside(b, func(field protowire.Number, value []byte) error {
			switch {
			case field == 1 && len(value) > 0:
				n.Spec.PodCIDR = mustJSON(string(value))
			case field == 7:
				podCIDRs = append(podCIDRs, string(value))
			}
			return nil
		}, 2),
		inside(b, func(field protowire.Number, value []byte) error {
			if field != 5 {
				return nil
			}
			var a typed
			err := message(value, func(field protowire.Number, value []byte) error {
				switch field {
				case 1:
					a.Type = string(value)
				case 2:
					a.Address = string(value)
				}
				return nil
			})
			n.Status.Addresses = append(n.Status.Addresses, a)
			return err
		}, 3))
	if len(labels) > 0 {
		n.Metadata.Labels = mustJSON(labels)
	}
	if len(podCIDRs) > 0 {
		n.Spec.PodCIDRs = mustJSON(podCIDRs)
	}
	return err
}

// entry adds an entry of a map.
func entry(to map[string]string, b []byte) error {
	var both [2]string
	err := message(b, func(field protowire.Number, value []byte) error {
		if field == 1 || field == 2 {
			both[field-1] = string(value)
		}
		return nil
	})
	to[both[0]] = both[1]
	return err
}

// decodeInto decodes a Node, or the Status of an error as JSON. It stands for json.Decoder.Decode.
func decodeInto(b []byte, v any) error {
	switch to := v.(type) {
	case *usedNode:
		return to.read(b)
	case *json.RawMessage:
		var s metav1.Status
		if s.Unmarshal(b) != nil {
			return errProtobuf
		}
		*to = mustJSON(s)
		return nil
	}
	return errProtobuf
}

// readProtobufList is readList of a list of Nodes as protobuf.
func readProtobufList(body *bounded, k kind, each func(item)) (meta listMeta, err error) {
	r := bufio.NewReader(body)
	var buffer bytes.Buffer // no item refers to it
	named, whole := "", false
	if _, err = r.Discard(len(protobufMagic)); err == nil {
		err = stream(r, -1, func(field protowire.Number, size int64) error {
			if field != 2 {
				b, err := take(r, size, &buffer)
				if err == nil && field == 1 {
					named = typeMetaKind(b)
				}
				return err
			}
			whole = true // unless stream fails
			return stream(r, size, func(field protowire.Number, size int64) error {
				b, err := take(r, size, &buffer)
				body.next()
				if err != nil {
					return err
				}
				switch field {
				case 1:
					return message(b, func(field protowire.Number, value []byte) error {
						switch field {
						case 2:
							meta.ResourceVersion = string(value)
						case 3:
							meta.Continue = string(value)
						}
						return nil
					})
				case 2:
					it, err := readItem(k, func(v any) error { return decodeInto(b, v) })
					if err == nil {
						each(it)
					}
					return err
				}
				return nil
			})
		})
	}
	if err == nil && !whole {
		err = io.ErrUnexpectedEOF
	}
	return meta, listEnd(err, named, k)
}

// stream calls do at each field of a message of that size (-1: until the end) that is a text, bytes or a message. do
// reads size bytes. Fields of other forms must be numbers, as all of a list's are.
func stream(r *bufio.Reader, size int64, do func(field protowire.Number, size int64) error) error {
	for size != 0 {
		tag, n, err := number(r)
		if errors.Is(err, io.EOF) && size < 0 && n == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		field, form := protowire.DecodeTag(tag)
		value, m, err := number(r)
		if err != nil {
			return err
		}
		used := int64(n + m)
		switch form {
		case protowire.VarintType:
		case protowire.BytesType:
			if value > 1<<40 || size >= 0 && int64(value) > size-used {
				return errProtobuf
			}
			if err := do(field, int64(value)); err != nil {
				return err
			}
			used += int64(value)
		default:
			return errProtobuf
		}
		if size >= 0 {
			if size -= used; size < 0 {
				return errProtobuf
			}
		}
	}
	return nil
}

// number reads a varint, and returns how many bytes it has.
func number(r *bufio.Reader) (value uint64, n int, err error) {
	for ; n < binary.MaxVarintLen64; n++ {
		b, err := r.ReadByte()
		if err != nil {
			return 0, n, err
		}
		value |= uint64(b&0x7f) << (7 * n)
		if b < 0x80 {
			return value, n + 1, nil
		}
	}
	return 0, n, errProtobuf
}

// take reads so many bytes, at most maxObject, into a buffer that grows with what arrives, not with what was announced.
func take(r io.Reader, size int64, into *bytes.Buffer) ([]byte, error) {
	if size > maxObject {
		return nil, errTooLarge
	}
	into.Reset()
	_, err := io.CopyN(into, r, size)
	return into.Bytes(), err
}

// protobufEvents returns a function that reads the next event of a watch of Nodes as protobuf: each frame is four bytes with
// its length, and a metav1.WatchEvent.
func protobufEvents(body *bounded) func(each func(event string, object func(any) error) error) error {
	r := bufio.NewReader(body)
	var buffer bytes.Buffer
	return func(each func(event string, object func(any) error) error) error {
		var length [4]byte
		if _, err := io.ReadFull(r, length[:]); err != nil {
			return err
		}
		frame, err := take(r, int64(binary.BigEndian.Uint32(length[:])), &buffer)
		if err != nil {
			return err
		}
		var event string
		var object []byte
		err = message(frame, func(field protowire.Number, value []byte) error {
			if field == 1 {
				event = string(value)
			}
			return nil
		})
		if err != nil {
			return err
		}
		err = inside(frame, func(field protowire.Number, value []byte) (err error) {
			if field == 1 {
				object, _, err = unwrap(value)
			}
			return err
		}, 2)
		if err != nil {
			return err
		}
		return each(event, func(v any) error { return decodeInto(object, v) })
	}
}

// statusText returns the text of a metav1.Status as JSON.
func statusText(text []byte) []byte {
	object, name, err := unwrap(text)
	var s json.RawMessage
	if err == nil && name == "Status" && decodeInto(object, &s) == nil {
		return s
	}
	return text
}

// startsWith reports whether what r reads starts with the prefix, and returns a reader of all of it.
func startsWith(r io.Reader, prefix string) (bool, io.Reader) {
	first := make([]byte, len(prefix))
	n, _ := io.ReadFull(r, first) // an error comes again
	return string(first[:n]) == prefix, io.MultiReader(bytes.NewReader(first[:n]), r)
}

// listEnd returns the error of a list that was read.
func listEnd(err error, named string, k kind) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errCut
	case err == nil && named != k.kind+"List":
		return fmt.Errorf("an answer of kind %q", named)
	}
	return err
}
