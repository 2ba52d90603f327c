// A device on pion (2.2): PSK-DTLS 1.2, one CoAP request, its answer.
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build -o pion_client pion_client.go
//	./pion_client 127.0.0.1 5684 plug-batch-7 706c75672d62617463682d372d6b6579 PLUG0001 \
//	    TLS_PSK_WITH_AES_128_CCM_8
//
// It prints the answer's code and payload. A last argument sets options: `noems` leaves
// extended master secret out, `rfc7925` sets the 9 s of RFC 7925 section 11 for the
// handshake's timer.
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pion/dtls/v2"
)

// RFC 7252 section 4.8. exchangeLifetime is the maximum wait for a separate response.
const (
	ackTimeout       = 2 * time.Second
	maxRetransmit    = 4
	exchangeLifetime = 247 * time.Second
)

// Time that the session stays open after a separate response. If our acknowledgement is
// lost, the response is repeated within 3 s.
const linger = 3 * time.Second

// Maximum number of requests, each with a new message ID, while none is acknowledged.
const attempts = 3

const patience = 300 * time.Second

// Maximum time for which the device uses one session to ask again after 4.29 or 5.03. A session that is
// idle for 300 s ends, so a longer wait needs another handshake.
const session = 240 * time.Second

// RFC 7252 section 5.10.5: the value of an absent Max-Age, in seconds.
const defaultMaxAge = 60

const (
	confirmable        = 0
	acknowledgement    = 2
	reset              = 3
	tooManyRequests    = 0x9d
	serviceUnavailable = 0xa3
)

type answer struct {
	code    byte
	maxAge  uint32 // seconds
	payload []byte
}

// isEarly returns whether the device has to ask again after Max-Age.
func (a *answer) isEarly() bool {
	return a.code == tooManyRequests || a.code == serviceUnavailable
}

var suites = map[string]dtls.CipherSuiteID{
	"TLS_PSK_WITH_AES_128_CCM_8":      dtls.TLS_PSK_WITH_AES_128_CCM_8,
	"TLS_PSK_WITH_AES_128_CCM":        dtls.TLS_PSK_WITH_AES_128_CCM,
	"TLS_PSK_WITH_AES_128_GCM_SHA256": dtls.TLS_PSK_WITH_AES_128_GCM_SHA256,
}

// request is GET /cert with {"sn": sn} as CBOR: a confirmable message with a token of one byte.
// The serial number has up to 23 characters. The message ID and the token depend on `number`.
func request(sn string, number byte) []byte {
	head := []byte("\x41\x01\x12\x34\xc3\xb4cert\x11\x3c\xff\xa1\x62sn")
	head[3], head[4] = number, number
	return append(append(head, 0x60|byte(len(sn))), sn...)
}

// jittered returns a time plus a random part of up to half of it, so that devices that failed together
// do not retry together.
func jittered(wait time.Duration) time.Duration {
	return wait + time.Duration(rand.Int63n(int64(wait/2)+1))
}

// extended reads the extended delta or length of an option (RFC 7252 section 3.1).
func extended(nibble int, rest []byte) (int, []byte, bool) {
	switch {
	case nibble < 13:
		return nibble, rest, true
	case nibble == 13 && len(rest) >= 1:
		return 13 + int(rest[0]), rest[1:], true
	case nibble == 14 && len(rest) >= 2:
		return 269 + int(rest[0])<<8 + int(rest[1]), rest[2:], true
	}
	return 0, nil, false
}

// read returns an answer, or nil for a malformed message or an unknown critical option. The options
// are read one by one, because they may contain the payload marker 0xff.
func read(message []byte) *answer {
	found := &answer{code: message[1], maxAge: defaultMaxAge}
	rest, number := message[4+int(message[0]&15):], 0
	for len(rest) > 0 && rest[0] != 0xff {
		first := int(rest[0])
		delta, more, isDelta := extended(first>>4, rest[1:])
		size, tail, isSize := extended(first&15, more)
		number += delta
		if !isDelta || !isSize || size > len(tail) || number%2 == 1 {
			return nil
		}
		if number == 14 && size <= 4 {
			found.maxAge = 0
			for _, digit := range tail[:size] {
				found.maxAge = found.maxAge<<8 | uint32(digit)
			}
		}
		rest = tail[size:]
	}
	if len(rest) == 1 {
		return nil // a marker is followed by a payload
	}
	if len(rest) > 1 {
		found.payload = append([]byte{}, rest[1:]...)
	}
	return found
}

// exchange returns the answer to a request, piggybacked or separate (RFC 7252), or nil.
func exchange(conn net.Conn, request []byte) (*answer, error) {
	var response *answer
	acknowledged, sent := false, 0
	wait := jittered(ackTimeout)
	until := time.Now()
	buffer := make([]byte, 2048)
	for {
		if !time.Now().Before(until) {
			// Section 4.2: the request is repeated until it is acknowledged.
			if response != nil || acknowledged || sent > maxRetransmit {
				return response, nil
			}
			if _, err := conn.Write(request); err != nil {
				return nil, err
			}
			sent++
			until = time.Now().Add(wait)
			wait *= 2
		}
		if err := conn.SetReadDeadline(until); err != nil {
			return nil, err
		}
		length, err := conn.Read(buffer)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			continue
		}
		if err != nil && response != nil {
			return response, nil
		}
		if err != nil {
			return nil, err
		}
		message := buffer[:length]
		if length < 4 || message[0]>>6 != 1 {
			continue
		}
		kind, class := message[0]>>4&3, message[1]>>5
		sameID := message[2] == request[2] && message[3] == request[3]
		var found *answer
		// An answer has the request's token. An answer in an acknowledgement also has the request's message
		// ID.
		if (class == 2 || class == 4 || class == 5) && message[0]&15 == 1 && length > 4 &&
			message[4] == request[4] && kind != reset && (kind != acknowledgement || sameID) {
			found = read(message)
		}
		if kind == confirmable {
			// Section 4.2: each copy of a confirmable answer is acknowledged. Any other confirmable
			// message, such as an empty one (a ping), is rejected.
			reply := []byte{0x70, 0, message[2], message[3]}
			if found != nil {
				reply[0] = 0x60
			}
			if _, err := conn.Write(reply); err != nil {
				return nil, err
			}
		}
		if message[1] == 0 && length == 4 && sameID && response == nil {
			if kind == reset {
				return nil, errors.New("the request was rejected")
			}
			if kind == acknowledgement && !acknowledged {
				// Section 5.2.2: the answer follows separately, and the request is not repeated.
				acknowledged = true
				until = time.Now().Add(exchangeLifetime)
			}
		}
		if found != nil && response == nil {
			response = found
			until = time.Now()
			if kind == confirmable {
				until = until.Add(linger)
			}
		}
	}
}

// ask asks again after 4.29 and 5.03, until there is another answer or the session is too old.
func ask(conn net.Conn, sn string) (*answer, error) {
	giveUp, tried := time.Now().Add(session), 0
	for number := byte(1); ; number++ {
		response, err := exchange(conn, request(sn, number))
		if err != nil {
			return nil, err
		}
		if response == nil {
			if tried++; tried == attempts {
				return nil, errors.New("no answer")
			}
			continue
		}
		wait := jittered(time.Duration(response.maxAge)*time.Second + time.Millisecond)
		if !response.isEarly() || time.Now().Add(wait).After(giveUp) {
			return response, nil
		}
		time.Sleep(wait)
		tried = 0
	}
}

func run(arguments []string) error {
	options := ""
	if len(arguments) > 6 {
		options = arguments[6]
	}
	port, err := strconv.Atoi(arguments[1])
	if err != nil {
		return err
	}
	key, err := hex.DecodeString(arguments[3])
	if err != nil {
		return err
	}
	suite, known := suites[arguments[5]]
	if !known || len(arguments[4]) > 23 {
		return errors.New("no such suite, or too long a serial number")
	}
	config := &dtls.Config{
		PSK:             func([]byte) ([]byte, error) { return key, nil },
		PSKIdentityHint: []byte(arguments[2]),
		CipherSuites:    []dtls.CipherSuiteID{suite},
	}
	if strings.Contains(options, "noems") {
		config.ExtendedMasterSecret = dtls.DisableExtendedMasterSecret
	}
	if strings.Contains(options, "rfc7925") {
		config.FlightInterval = 9 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := dtls.DialWithContext(ctx, "udp", &net.UDPAddr{IP: net.ParseIP(arguments[0]), Port: port}, config)
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	defer conn.Close()
	response, err := ask(conn, arguments[4])
	if err != nil {
		return err
	}
	fmt.Printf("%s %d.%02d %s\n", arguments[5], response.code>>5, response.code&31, response.payload)
	if response.isEarly() {
		return fmt.Errorf("ask again in a new session, after %d s", response.maxAge)
	}
	if response.code>>5 != 2 {
		return errors.New("refused")
	}
	return nil
}

func main() {
	rand.Seed(time.Now().UnixNano())
	if len(os.Args) < 7 {
		fmt.Fprintf(os.Stderr, "usage: %s HOST PORT IDENTITY PSK-HEX SN SUITE [OPTIONS]\n", os.Args[0])
		os.Exit(2)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
