package cri

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// message is a protobuf message in the making (protobuf.dev, "Encoding"). CRI is a wire contract:
// the few fields that are sent and read here are named by their numbers in api.proto, beside the
// client's methods. As in proto3, a value of zero is not written.
type message []byte

func (m message) text(n protowire.Number, texts ...string) message {
	for _, s := range texts {
		if s != "" {
			m = protowire.AppendString(protowire.AppendTag(m, n, protowire.BytesType), s)
		}
	}
	return m
}

func (m message) number(n protowire.Number, v uint64) message {
	if v == 0 {
		return m
	}
	return protowire.AppendVarint(protowire.AppendTag(m, n, protowire.VarintType), v)
}

func (m message) inner(n protowire.Number, inner message) message {
	return protowire.AppendBytes(protowire.AppendTag(m, n, protowire.BytesType), inner)
}

// entries writes a map<string, string>: a repeated message of key and value.
func (m message) entries(n protowire.Number, entries map[string]string) message {
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		m = m.inner(n, message{}.text(1, key).text(2, entries[key]))
	}
	return m
}

// fields are the fields of a received message, by number, in the order of the wire.
type fields map[protowire.Number][]field

// field is a number or bytes, as its type on the wire has it.
type field struct {
	number uint64
	bytes  []byte
}

func parse(b []byte) (fields, error) {
	all := fields{}
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		b = b[size:]
		var f field
		switch kind {
		case protowire.VarintType:
			f.number, size = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			f.bytes, size = protowire.ConsumeBytes(b)
		default:
			size = protowire.ConsumeFieldValue(n, kind, b)
		}
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		b = b[size:]
		all[n] = append(all[n], f)
	}
	return all, nil
}

// text of a single field: the last one counts.
func (f fields) text(n protowire.Number) string {
	if all := f[n]; len(all) > 0 {
		return string(all[len(all)-1].bytes)
	}
	return ""
}

func (f fields) number(n protowire.Number) uint64 {
	if all := f[n]; len(all) > 0 {
		return all[len(all)-1].number
	}
	return 0
}

// inner is a field that is a message; none is an empty one.
func (f fields) inner(n protowire.Number) (fields, error) { return parse([]byte(f.text(n))) }

// each parses every message of a repeated field.
func (f fields) each(n protowire.Number) ([]fields, error) {
	var all []fields
	for _, v := range f[n] {
		inner, err := parse(v.bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, inner)
	}
	return all, nil
}

// codec passes messages through gRPC as they are.
type codec struct{}

func (codec) Name() string { return "proto" } // on the wire: application/grpc+proto

func (codec) Marshal(v any) ([]byte, error) { return v.(message), nil }

func (codec) Unmarshal(b []byte, v any) error {
	parsed, err := parse(slices.Clone(b)) // gRPC takes its buffer back
	*v.(*fields) = parsed
	return err
}
