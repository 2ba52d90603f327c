#!/usr/bin/env escript
%%! -noshell
%% A device on Erlang/OTP's ssl (25): PSK-DTLS 1.2 with or without ECDHE, one CoAP request,
%% its answer.
%%
%%   escript erlang_client.escript 127.0.0.1 5684 plug-batch-7 \
%%       706c75672d62617463682d372d6b6579 PLUG0001 PSK-AES128-CCM8
%%
%% It prints the answer's code and payload. The suite is given by OpenSSL's name. Two suites
%% that OpenSSL lacks are called ECDHE-PSK-AES128-CCM8 and ECDHE-PSK-AES128-GCM-SHA256. A
%% last argument sets options: a group (`x25519` or `p256`).

%% RFC 7252 section 4.8, in milliseconds. EXCHANGE_LIFETIME is the maximum wait for a
%% separate response.
-define(ACK_TIMEOUT, 2000).
-define(MAX_RETRANSMIT, 4).
%% Maximum number of requests, each with a new message ID, while none is acknowledged.
-define(ATTEMPTS, 3).
-define(EXCHANGE_LIFETIME, 247000).
%% Time that the session stays open after a separate response. If our acknowledgement is
%% lost, the response is repeated within 3 s.
-define(LINGER, 3000).
-define(PATIENCE, 300000).
%% Maximum time for which the device uses one session to ask again after 4.29 or 5.03. A session that is
%% idle for 300 s ends, so a longer wait needs another handshake.
-define(SESSION, 240000).
%% RFC 7252 section 5.10.5: the value of an absent Max-Age, in seconds.
-define(DEFAULT_MAX_AGE, 60).
-define(IS_EARLY(Code), (Code =:= 16#9d orelse Code =:= 16#a3)). %% 4.29, 5.03

%% The token of a request is the last byte of its message ID.
-record(exchange, {socket, id, request, sent = 0, wait, until, acknowledged = false, answer = none}).

main([Host, Port, Identity, Key, Sn, Suite | Rest]) when length(Sn) < 24 ->
    Options = lists:append(Rest),
    {ok, _} = application:ensure_all_started(ssl),
    %% Log lines would mix with the answer on standard output.
    logger:set_primary_config(level, none),
    {ok, Address} = inet:parse_address(Host),
    Psk = binary:decode_hex(list_to_binary(Key)),
    Connection =
        [{protocol, dtls}, {versions, ['dtlsv1.2']}, {ciphers, [suite(Suite)]}, {verify, verify_none},
         {psk_identity, Identity}, {user_lookup_fun, {fun(psk, _, State) -> {ok, State} end, Psk}},
         {active, false}, {mode, binary}] ++ groups(Options),
    case ssl:connect(Address, list_to_integer(Port), Connection, ?PATIENCE) of
        {ok, Socket} ->
            Result = ask(Socket, Sn, Suite),
            ssl:close(Socket),
            halt(Result);
        {error, Reason} ->
            io:format(standard_error, "handshake: ~p~n", [Reason]),
            halt(1)
    end;
main(_) ->
    io:format(standard_error, "usage: erlang_client.escript HOST PORT IDENTITY PSK-HEX SN SUITE [OPTIONS]~n", []),
    halt(2).

suite("ECDHE-PSK-AES128-CCM8") -> #{key_exchange => ecdhe_psk, cipher => aes_128_ccm_8, mac => aead, prf => sha256};
suite("ECDHE-PSK-AES128-GCM-SHA256") -> #{key_exchange => ecdhe_psk, cipher => aes_128_gcm, mac => aead, prf => sha256};
suite("PSK-AES128-CCM8") -> #{key_exchange => psk, cipher => aes_128_ccm_8, mac => aead, prf => default_prf};
suite("PSK-AES128-CCM") -> #{key_exchange => psk, cipher => aes_128_ccm, mac => aead, prf => default_prf};
suite("PSK-AES128-GCM-SHA256") -> #{key_exchange => psk, cipher => aes_128_gcm, mac => aead, prf => sha256}.

groups("") -> [];
groups("x25519") -> [{eccs, [x25519]}];
groups("p256") -> [{eccs, [secp256r1]}].

ask(Socket, Sn, Suite) ->
    case ask(Socket, list_to_binary(Sn), 1, ?ATTEMPTS, now_millis() + ?SESSION) of
        {Code, MaxAge, Payload} ->
            Answer = [io_lib:format("~s ~b.~2..0b ", [Suite, Code bsr 5, Code band 31]), Payload, "\n"],
            ok = io:setopts([{encoding, latin1}]),
            ok = io:put_chars(binary_to_list(iolist_to_binary(Answer))),
            [io:format(standard_error, "ask again in a new session, after ~b s~n", [MaxAge]) || ?IS_EARLY(Code)],
            case Code bsr 5 of 2 -> 0; _ -> 1 end;
        none ->
            io:format(standard_error, "no answer~n", []),
            1
    end.

%% Asks again after 4.29 and 5.03, until there is another answer or the session is too old.
ask(_, _, _, 0, _) -> none;
ask(Socket, Name, Id, Attempts, GiveUp) ->
    %% GET /cert with {"sn": sn} as CBOR: a confirmable message.
    Request = <<1:2, 0:2, 1:4, 1, Id:16, Id, 16#b4, "cert", 16#11, 60, 16#ff, 16#a1, 16#62, "sn",
                (16#60 bor byte_size(Name)), Name/binary>>,
    Wait = jittered(?ACK_TIMEOUT),
    case exchange(#exchange{socket = Socket, id = Id, request = Request, wait = Wait, until = now_millis()}) of
        none -> ask(Socket, Name, Id + 1, Attempts - 1, GiveUp);
        {Code, MaxAge, _} = Answer ->
            Pause = jittered(1000 * max(MaxAge, 1)),
            case ?IS_EARLY(Code) andalso now_millis() + Pause =< GiveUp of
                true -> timer:sleep(Pause), ask(Socket, Name, Id + 1, ?ATTEMPTS, GiveUp);
                false -> Answer
            end
    end.

now_millis() -> erlang:monotonic_time(millisecond).

%% Returns a time plus a random part of up to half of it, so that devices that failed together do not
%% retry together.
jittered(Millis) -> Millis + rand:uniform(Millis div 2 + 1) - 1.

%% Returns the answer to the request, piggybacked or separate: its code, its Max-Age and its payload.
exchange(#exchange{until = Until, sent = Sent} = E) ->
    case now_millis() >= Until of
        true when E#exchange.answer =/= none; E#exchange.acknowledged; Sent > ?MAX_RETRANSMIT ->
            E#exchange.answer;
        true ->
            %% Section 4.2: the request is repeated until it is acknowledged.
            ok = ssl:send(E#exchange.socket, E#exchange.request),
            Wait = E#exchange.wait,
            exchange(E#exchange{sent = Sent + 1, until = now_millis() + Wait, wait = 2 * Wait});
        false ->
            case ssl:recv(E#exchange.socket, 0, Until - now_millis()) of
                {ok, Message} -> exchange(received(Message, E));
                {error, timeout} -> exchange(E);
                {error, _} -> E#exchange.answer
            end
    end.

%% Section 5.2.2: after an empty acknowledgement the answer follows separately, and the request is
%% not repeated.
received(<<1:2, 2:2, 0:4, 0, Id:16>>, #exchange{id = Id, acknowledged = false, answer = none} = E) ->
    E#exchange{acknowledged = true, until = now_millis() + ?EXCHANGE_LIFETIME};
received(<<1:2, 3:2, 0:4, 0, Id:16>>, #exchange{id = Id, answer = none} = E) ->
    E#exchange{acknowledged = true, until = now_millis()};
%% An answer has the request's token. An answer in an acknowledgement also has the request's message ID.
received(<<1:2, Type:2, 1:4, Class:3, Detail:5, Id:16, Token, Rest/binary>>, #exchange{id = Own} = E)
  when Token =:= Own band 255, Class =:= 2 orelse Class =:= 4 orelse Class =:= 5,
       Type < 2 orelse (Type =:= 2 andalso Id =:= Own) ->
    case catch options(Rest, 0, ?DEFAULT_MAX_AGE) of
        {MaxAge, Payload} when is_integer(MaxAge), E#exchange.answer =:= none ->
            Linger = reply(Type, 2, Id, E),
            E#exchange{answer = {Class * 32 + Detail, MaxAge, Payload}, until = now_millis() + Linger};
        {MaxAge, _} when is_integer(MaxAge) -> %% a copy
            reply(Type, 2, Id, E),
            E;
        _ ->
            reply(Type, 3, Id, E),
            E
    end;
received(<<1:2, Type:2, _:4, _, Id:16, _/binary>>, E) ->
    reply(Type, 3, Id, E),
    E;
received(_, E) ->
    E.

%% Section 4.2: each copy of a confirmable answer is acknowledged (2). Any other confirmable message,
%% such as an empty one (a ping), is rejected (3). Returns the time for which copies may follow.
reply(0, Kind, Id, E) ->
    ok = ssl:send(E#exchange.socket, <<1:2, Kind:2, 0:4, 0, Id:16>>),
    ?LINGER;
reply(_, _, _, _) ->
    0.

%% Returns Max-Age and the payload. The options are read one by one, because they may contain the
%% payload marker 16#ff (RFC 7252 section 3.1). Fails for a malformed message and for an unknown
%% critical option.
options(<<>>, _, MaxAge) -> {MaxAge, <<>>};
options(<<16#ff, Payload/binary>>, _, MaxAge) when Payload =/= <<>> -> {MaxAge, Payload};
options(<<First:4, Second:4, Rest/binary>>, Before, MaxAge) when First < 15, Second < 15 ->
    {Delta, More} = extended(First, Rest),
    {Size, Tail} = extended(Second, More),
    <<Value:Size/binary, Next/binary>> = Tail,
    case Before + Delta of
        14 -> options(Next, 14, binary:decode_unsigned(<<0, Value/binary>>));
        Number when Number rem 2 =:= 0 -> options(Next, Number, MaxAge)
    end.

extended(13, <<Byte, Rest/binary>>) -> {13 + Byte, Rest};
extended(14, <<Word:16, Rest/binary>>) -> {269 + Word, Rest};
extended(Nibble, Rest) when Nibble < 13 -> {Nibble, Rest}.
